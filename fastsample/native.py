"""temporary"""


def load_for(device: str) -> bool:
    return False


def why_not(device: str) -> str:
    return "not built"
