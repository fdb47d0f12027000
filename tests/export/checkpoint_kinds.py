"""Kinds of checkpoints as they are met, each made from the small one: what export does with it, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from tests.export.checkpoint_damage import cut, no_json, spoil, without_data, zeros
from tests.export.checkpoint_edits import (
    CLIP,
    TEXT,
    UNET,
    VAE,
    Make,
    add_tokens,
    also,
    config,
    drop,
    ema,
    emptied,
    flow_matching,
    fused_lora,
    half_variant,
    index,
    ip_adapter,
    lfs_pointer,
    lora_beside,
    missing_shard,
    more_embeddings,
    old_names,
    other_weights,
    own_code,
    pipeline,
    quantized,
    remove,
    rename,
    scheduler,
    sharded,
    single_file,
    single_file_inside,
    text_inversion,
)


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        name: as people call it.
        make: turns a copy of the small checkpoint into one of this kind.
        words: that the one line of the refusal holds; none where it is exported.
        unused: a word of the warning of what is not used.
        spacing: of the timesteps, where it is exported.
    """

    name: str
    make: Make
    words: tuple[str, ...] = ()
    unused: str = ""
    spacing: str = "leading"

    def __str__(self) -> str:
        return self.name


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
SD2 = other_weights(use_linear_projection=True, attention_head_dim=[2, 4], upcast_attention=True)
NO_CLIP = {"text_encoder": [None, None], "tokenizer": [None, None]}
XL = {"text_encoder": CLIP, "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}

EXPORTED = (
    Kind("Stable Diffusion 1.x, epsilon", also()),
    Kind("Stable Diffusion 2.x, v-prediction", also(SD2, scheduler("DDIMScheduler", prediction_type="v_prediction"))),
    Kind(
        "Stable Diffusion 2.x, zero terminal SNR", also(SD2, scheduler("DDIMScheduler", **ZERO_SNR)), spacing="trailing"
    ),
    Kind("Turbo", scheduler("EulerDiscreteScheduler", timestep_spacing="trailing"), spacing="trailing"),
    Kind("saved with Euler", scheduler("EulerDiscreteScheduler")),
    Kind("saved with DPM++", scheduler("DPMSolverMultistepScheduler")),
    Kind("saved with UniPC", scheduler("UniPCMultistepScheduler")),
    Kind("saved with PNDM", scheduler("PNDMScheduler", skip_prk_steps=True)),
    Kind("weights as fp16 only", half_variant),
    Kind("sharded U-Net", sharded),
    Kind("EMA beside", ema),
    Kind("names of old versions", old_names),
    Kind("distilled, without a middle block", other_weights(mid_block_type=None)),
    Kind(
        "ControlNet pipeline",
        index(_class_name="StableDiffusionControlNetPipeline", controlnet=["diffusers", "ControlNetModel"]),
        unused="the ControlNet is not used",
    ),
    Kind("LoRA file beside", lora_beside, unused="pytorch_lora_weights.safetensors is not used"),
    Kind("textual inversion of one vector", text_inversion("<cat-toy>")),
    Kind("embeddings without tokens", more_embeddings(2), unused="2 embeddings of the text encoder are not used"),
    Kind(
        "key that diffusers does not know",
        config("unet", new_switch=True),
        unused="unet/config.json: new_switch is unknown",
    ),
    Kind(
        "attention kernels asked for",
        config("text_encoder", _attn_implementation="someone/kernels", attn_implementation="x"),
    ),
)

REFUSED = (
    Kind(".bin only", rename(".bin"), ("pickles", "safe_serialization=True")),
    Kind("Flax only", rename(".msgpack"), ("Flax", "from_flax=True")),
    Kind("single file .safetensors", single_file(".safetensors"), ("single-file checkpoint", "from_single_file")),
    Kind("folder with a single file", single_file_inside, ("v1-5-pruned.safetensors", "from_single_file")),
    Kind("empty folder", emptied, ("it is empty", "model_index.json")),
    Kind(
        "missing text encoder weights", drop(TEXT, "text_model.encoder.", "encoder."), ("text_encoder", "lacks 16 of")
    ),
    Kind("missing text encoder", remove("text_encoder"), ("has no text_encoder/config.json",)),
    Kind("missing tokenizer", remove("tokenizer"), ("has no tokenizer", "vocab.json")),
    Kind(
        "AltDiffusion",
        index(
            _class_name="AltDiffusionPipeline",
            text_encoder=["alt_diffusion", "RobertaSeriesModelWithTransformation"],
            tokenizer=["transformers", "XLMRobertaTokenizer"],
        ),
        ("AltDiffusion", "Stable Diffusion 1.x and 2.x"),
    ),
    Kind(
        "AltDiffusion's text encoder",
        index(text_encoder=["alt_diffusion", "RobertaSeriesModelWithTransformation"]),
        ("its text_encoder is RobertaSeriesModelWithTransformation",),
    ),
    Kind(
        "LCM",
        also(other_weights(time_cond_proj_dim=16), index(_class_name="LatentConsistencyModelPipeline")),
        ("latent consistency model (LCM)", "time_cond_proj_dim=16"),
    ),
    Kind("Stable Diffusion XL", pipeline("StableDiffusionXLPipeline", **XL), ("Stable Diffusion XL, which",)),
    Kind("Stable Diffusion XL refiner", pipeline("StableDiffusionXLImg2ImgPipeline", **NO_CLIP), ("refiner",)),
    Kind("Stable Diffusion 3", pipeline("StableDiffusion3Pipeline"), ("Stable Diffusion 3, a transformer",)),
    Kind("FLUX", pipeline("FluxPipeline", text_encoder=CLIP), ("FLUX, a transformer",)),
    Kind("PixArt", pipeline("PixArtAlphaPipeline"), ("PixArt, a transformer",)),
    Kind("Kandinsky", pipeline("KandinskyV22Pipeline"), ("Kandinsky, whose U-Net takes image embeddings",)),
    Kind(
        "latent diffusion with a VQ autoencoder",
        index(vae=["diffusers", "VQModel"]),
        ("its vae is VQModel and has to be AutoencoderKL",),
    ),
    Kind("another library's pipeline", index(_class_name="WanPipeline"), ("it is a WanPipeline",)),
    Kind("inpainting", other_weights(in_channels=9), ("inpainting model", "takes 9 channels")),
    Kind("InstructPix2Pix", other_weights(in_channels=8), ("InstructPix2Pix", "takes 8 channels")),
    Kind("depth", other_weights(in_channels=5), ("depth model",)),
    Kind("GLIGEN", other_weights(attention_type="gated"), ("GLIGEN", "gated")),
    Kind("class-conditional", other_weights(class_embed_type="timestep"), ("class_embed_type='timestep'",)),
    Kind("numbered classes", other_weights(num_class_embeds=10), ("num_class_embeds=10",)),
    Kind("addition embeddings", config("unet", addition_embed_type="text_time"), ("addition_embed_type='text_time'",)),
    Kind(
        "projected text",
        config("unet", encoder_hid_dim=8, encoder_hid_dim_type="text_proj"),
        ("encoder_hid_dim_type='text_proj'",),
    ),
    Kind(
        "cross-attention only",
        config("unet", mid_block_only_cross_attention=True),
        ("mid_block_only_cross_attention=True",),
    ),
    Kind("dual cross-attention", config("unet", dual_cross_attention=True), ("dual_cross_attention=True",)),
    Kind(
        "other blocks",
        config("unet", down_block_types=["CrossAttnDownBlock2D", "AttnDownBlock2D"]),
        ("AttnDownBlock2D",),
    ),
    Kind("8 output channels", other_weights(out_channels=8), ("gives 8 channels", "learned variance")),
    Kind("no sample size", config("unet", sample_size=None), ("sample_size None",)),
    Kind("LoRA fused and not unloaded", fused_lora, ("LoRA", "unload_lora_weights()")),
    Kind("IP-Adapter not unloaded", ip_adapter, ("IP-Adapter", "unload_ip_adapter()")),
    Kind(
        "textual inversion of several vectors",
        text_inversion("<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"),
        ("textual inversion of several vectors, <cat-toy>", "unload_textual_inversion()"),
    ),
    Kind(
        "tokens without embeddings",
        add_tokens("<dog>"),
        ("529 tokens, its text encoder 528 embeddings", "'<dog>' has none"),
    ),
    Kind("NaN weights", spoil(VAE, float("nan")), ("the vae", "NaN or infinity", "decoder.conv_in.bias")),
    Kind("infinite weights", spoil(TEXT, float("inf")), ("the text_encoder", "NaN or infinity")),
    Kind("truncated safetensors", cut(UNET), (UNET, "cut short or damaged")),
    Kind("header without weights", without_data, (UNET, "cut short or damaged")),
    Kind("Git LFS pointer", lfs_pointer, ("Git LFS pointer", "git lfs pull")),
    Kind("meta weights", zeros, ("every weight of the unet", "is 0")),
    Kind(
        "dropped VAE key",
        drop(VAE, "decoder.conv_out.bias"),
        ("the vae", "lacks 1 of the 152", "decoder.conv_out.bias"),
    ),
    Kind("dropped U-Net key", drop(UNET, "conv_in.bias"), ("the unet", "lacks 1 of", "conv_in.bias")),
    Kind(
        "weights of another size",
        config("unet", block_out_channels=[16, 64]),
        ("with shape", "its configuration needs"),
    ),
    Kind("missing shard", missing_shard, ("-00002-of-00002.safetensors", "index.json refers to")),
    Kind("integer weights", quantized, ("I8", "quantized")),
    Kind(
        "quantization_config",
        config("unet", quantization_config={"quant_method": "bitsandbytes"}),
        ("quantized weights", "quantization_config"),
    ),
    Kind(
        "auto_map",
        config("text_encoder", auto_map={"AutoModel": "custom.Model"}),
        ("Python code of its own", "auto_map"),
    ),
    Kind("own U-Net class", own_code("unet", "MyUNet"), ("its unet is MyUNet of custom", "never run")),
    Kind(
        "own pipeline class",
        also(own_code("unet", "X"), index(_class_name=["custom", "MyPipe"])),
        ("MyPipe", "never run"),
    ),
    Kind(
        "U-Net of another class",
        config("unet", _class_name="UNetMotionModel"),
        ("UNetMotionModel", "takes UNet2DConditionModel"),
    ),
    Kind("configuration that is no JSON", no_json, ("unet/config.json", "cannot be read")),
    Kind("flow matching", flow_matching, ("FlowMatchEulerDiscreteScheduler", "flow matching")),
    Kind("autoencoder that shifts", config("vae", shift_factor=0.1), ("shift_factor",)),
)
