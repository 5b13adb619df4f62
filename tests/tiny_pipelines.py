"""Pipelines of diffusers with networks of a few thousand random weights; prompts come as embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from .stand_ins import pipeline_classes

(
    StableDiffusion,
    Img2Img,
    Inpaint,
    StableDiffusionXL,
    Flux,
    StableDiffusion3,
    Wan,
    LatentConsistency,
    DiT,
) = pipeline_classes(
    "stable_diffusion.pipeline_stable_diffusion.StableDiffusionPipeline",
    "stable_diffusion.pipeline_stable_diffusion_img2img.StableDiffusionImg2ImgPipeline",
    "stable_diffusion.pipeline_stable_diffusion_inpaint.StableDiffusionInpaintPipeline",
    "stable_diffusion_xl.pipeline_stable_diffusion_xl.StableDiffusionXLPipeline",
    "flux.pipeline_flux.FluxPipeline",
    "stable_diffusion_3.pipeline_stable_diffusion_3.StableDiffusion3Pipeline",
    "wan.pipeline_wan.WanPipeline",
    "latent_consistency_models.pipeline_latent_consistency_text2img.LatentConsistencyModelPipeline",
    "dit.pipeline_dit.DiTPipeline",
)
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
Made = tuple[Any, dict[str, Any]]


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _unet(**more: Any) -> Any:
    options: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**options, **more}).eval()


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    ).eval()


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd(cls: Any, scheduler: Any, **more: Any) -> Any:
    return _quiet(
        cls(
            vae=_vae(),
            text_encoder=None,
            tokenizer=None,
            unet=_unet(**more),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def _prompt(batch: int = 2, width: int = 16) -> dict[str, Any]:
    return {
        "prompt_embeds": _normal(batch, 5, width, seed=1),
        "negative_prompt_embeds": _normal(batch, 5, width, seed=2),
        "output_type": "latent",
    }


def stable_diffusion(scheduler: Any) -> Made:
    """Text to image with guidance."""
    return _sd(StableDiffusion, scheduler), {**_prompt(), "height": 16, "width": 16, "guidance_scale": 5.0}


def img2img(scheduler: Any) -> Made:
    """A start in the middle of the grid, from a noisy picture."""
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return _sd(Img2Img, scheduler), {**_prompt(), "image": image, "strength": 0.6, "guidance_scale": 5.0}


def inpaint(scheduler: Any) -> Made:
    """The state is mixed with a noisy picture after every step."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
    return _sd(Inpaint, scheduler), {
        **_prompt(1),
        "image": image,
        "mask_image": mask,
        "height": 16,
        "width": 16,
        "strength": 0.9,
        "guidance_scale": 5.0,
    }


def sdxl(scheduler: Any) -> Made:
    """Guidance and guidance rescale."""
    unet = _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
        use_linear_projection=True,
    )
    pipe = StableDiffusionXL(
        vae=_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pooled = {"pooled_prompt_embeds": _normal(2, 8, seed=4), "negative_pooled_prompt_embeds": _normal(2, 8, seed=5)}
    return _quiet(pipe), {
        **_prompt(),
        **pooled,
        "height": 16,
        "width": 16,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.7,
    }


def lcm(scheduler: Any) -> Made:
    """Few steps with a guidance embedding."""
    pipe = _sd(LatentConsistency, scheduler, time_cond_proj_dim=16)
    call = {**_prompt(), "height": 16, "width": 16}
    del call["negative_prompt_embeds"]
    return pipe, call


def sd3(scheduler: Any) -> Made:
    """Rectified flow with guidance."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
    ).eval()
    pipe = StableDiffusion3(
        transformer=transformer,
        scheduler=scheduler,
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pooled = {"pooled_prompt_embeds": _normal(2, 8, seed=4), "negative_pooled_prompt_embeds": _normal(2, 8, seed=5)}
    return _quiet(pipe), {**_prompt(), **pooled, "height": 16, "width": 16, "guidance_scale": 5.0}


def flux(scheduler: Any) -> Made:
    """Rectified flow with the pipeline's own sigmas, shifted by the size of the picture."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    pipe = Flux(
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    call = _prompt()
    del call["negative_prompt_embeds"]
    return _quiet(pipe), {**call, "pooled_prompt_embeds": _normal(2, 8, seed=4), "height": 64, "width": 64}


def wan(scheduler: Any) -> Made:
    """Video: state (1, 4, frames, height, width), float32 latents."""
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()
    pipe = Wan(vae=None, scheduler=scheduler, text_encoder=None, tokenizer=None, transformer=transformer)
    return _quiet(pipe), {**_prompt(1), "height": 64, "width": 64, "num_frames": 5, "guidance_scale": 5.0}


def dit(scheduler: Any) -> Made:
    """Class labels; the network predicts a variance too, which the pipeline cuts off."""
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,  # the pipeline's empty class is number 1000
    ).eval()
    return _quiet(DiT(transformer=transformer, vae=_vae(), scheduler=scheduler)), {
        "class_labels": [1, 3],
        "output_type": "np",
    }


def _pixels(pipeline: Any, scheduler: Any) -> Made:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    return _quiet(pipeline(unet=unet, scheduler=scheduler)), {"batch_size": 2, "output_type": "np"}


def ddpm(scheduler: Any) -> Made:
    """Unconditional pixels."""
    return _pixels(diffusers.DDPMPipeline, scheduler)


def ddim(scheduler: Any) -> Made:
    """Unconditional pixels with ``eta``; the pipeline builds its own scheduler from the configuration of ours."""
    pipe, call = _pixels(diffusers.DDIMPipeline, scheduler)
    return pipe, {**call, "eta": 0.5}


BUILDERS: dict[str, Callable[[Any], Made]] = {
    f.__name__: f for f in (stable_diffusion, img2img, inpaint, sdxl, lcm, sd3, flux, wan, dit, ddpm, ddim)
}
