// A tool that listens to nvtx, as Nsight does: NVTX_INJECTION64_PATH names this library, and it writes what it hears.
// The layout is that of nvtx3 (nvToolsExt.h, nvtxDetail/nvtxTypes.h), written out so that no CUDA is needed.
// Lines in the file LISTENER_OUT: "domain NAME", "push DOMAIN PAYLOAD TEXT", "pop DOMAIN".
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Attributes {
  uint16_t version, size;
  uint32_t category;
  int32_t color_type;
  uint32_t color;
  int32_t payload_type, reserved;
  int64_t payload;
  int32_t message_type;
  const char* message;  // of type 3: the handle that register_string gave, which is a text too
};

using Function = void (*)();

struct Callbacks {
  size_t struct_size;
  int (*module_table)(int module, Function*** table, unsigned int* size);
};

// numbers of nvtxTypes.h
enum { CALLBACKS = 1, CORE2 = 5, PUSH = 4, POP = 5, REGISTER_STRING = 10, DOMAIN_CREATE = 12, LAST = 15 };
enum { INT64 = 2 };

FILE* out;

void* domain_create(const char* name) {
  std::fprintf(out, "domain %s\n", name);
  return strdup(name);
}

void* register_string(void*, const char* text) { return strdup(text); }

int push(const char* domain, const Attributes* a) {
  std::fprintf(out, "push %s %lld %s\n", domain, a->payload_type == INT64 ? (long long)a->payload : -1LL, a->message);
  return 0;
}

int pop(const char* domain) {
  std::fprintf(out, "pop %s\n", domain);
  std::fflush(out);
  return 0;
}

}  // namespace

extern "C" int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
  const char* path = std::getenv("LISTENER_OUT");
  const auto* callbacks = static_cast<const Callbacks*>(export_table(CALLBACKS));
  Function** table = nullptr;
  unsigned int size = 0;
  if (!path || !callbacks || !callbacks->module_table(CORE2, &table, &size) || size <= LAST) return 0;
  out = std::fopen(path, "w");
  *table[PUSH] = reinterpret_cast<Function>(push);
  *table[POP] = reinterpret_cast<Function>(pop);
  *table[REGISTER_STRING] = reinterpret_cast<Function>(register_string);
  *table[DOMAIN_CREATE] = reinterpret_cast<Function>(domain_create);
  return out != nullptr;
}
