"""What turns the small checkpoint into one of another kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# Changes a folder; gives what is to be exported where that is not the folder.
Make = Callable[[Path], Path | None]
Tensors = dict[str, torch.Tensor]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
CLIP = ["transformers", "CLIPTextModel"]


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, edit: Callable[[Tensors], Tensors]) -> None:
    """Rewrite a safetensors file."""
    # Copies: the file that is written is the one that is mapped.
    save_file(edit({name: tensor.clone() for name, tensor in load_file(path).items()}), path)


def index(**changes: Any) -> Make:
    """Another model_index.json."""
    return lambda folder: edit_json(folder / "model_index.json", **changes)


def scheduler(name: str, **changes: Any) -> Make:
    """Another scheduler: its configuration in full, as diffusers saves it."""

    def make(folder: Path) -> None:
        import diffusers

        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        shutil.rmtree(folder / "scheduler")
        getattr(diffusers, name)(**betas, **changes).save_pretrained(folder / "scheduler")
        edit_json(folder / "model_index.json", scheduler=["diffusers", name])

    return make


def flow_matching(folder: Path) -> None:
    """The scheduler of models that are trained otherwise."""
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")


def pipeline(name: str, **parts: Any) -> Make:
    """The index of another pipeline with parts of its own, which are not looked at."""

    def make(folder: Path) -> None:
        edit = {"_class_name": name, **parts}
        (folder / "model_index.json").write_text(json.dumps(edit))

    return make


def remove(*names: str) -> Make:
    """Without these files or folders."""

    def make(folder: Path) -> None:
        for name in names:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    return make


def rename(ending: str) -> Make:
    """All weights with another ending."""

    def make(folder: Path) -> None:
        for path in list(folder.rglob("*.safetensors")):
            path.rename(path.with_suffix(ending))

    return make


def half_variant(folder: Path) -> None:
    """The files of the variant fp16, and no others."""
    for path in folder.rglob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path.with_suffix(".fp16.safetensors"))
        path.unlink()


def sharded(folder: Path) -> None:
    """The U-Net in two files."""
    tensors = load_file(folder / UNET)
    names = sorted(tensors)
    files = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    where = {name: files[position % 2] for position, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / "unet" / file)
    (folder / f"{UNET}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / UNET).unlink()


def missing_shard(folder: Path) -> None:
    """One of the two files is not there."""
    sharded(folder)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def ema(folder: Path) -> None:
    """As training leaves it: averaged weights in a folder of their own, and a variant that is not averaged."""
    shutil.copytree(folder / "unet", folder / "unet_ema")
    edit_weights(
        folder / "unet_ema" / "diffusion_pytorch_model.safetensors", lambda t: {k: v * 0 for k, v in t.items()}
    )
    shutil.copy(folder / "unet_ema" / Path(UNET).name, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    edit_json(folder / "unet" / "config.json", decay=0.9999, inv_gamma=1.0, optimization_step=1000, power=0.75)


def drop(path: str, *beginnings: str) -> Make:
    """Weights whose names begin so are not in the file."""
    return lambda folder: edit_weights(
        folder / path, lambda t: {k: v for k, v in t.items() if not k.startswith(beginnings)}
    )


def fused_lora(folder: Path) -> None:
    """What peft makes of the layers that it wraps."""

    def wrap(tensors: Tensors) -> Tensors:
        wrapped = {}
        for name, tensor in tensors.items():
            head, _, tail = name.rpartition(".")
            if head.endswith("attn1.to_q"):
                wrapped[f"{head}.base_layer.{tail}"] = tensor
                wrapped[f"{head}.lora_A.default.{tail}"] = torch.zeros(4, tensor.shape[1])
                wrapped[f"{head}.lora_B.default.{tail}"] = torch.zeros(tensor.shape[0], 4)
            else:
                wrapped[name] = tensor
        return wrapped

    edit_weights(folder / UNET, wrap)


def ip_adapter(folder: Path) -> None:
    """The projection that an IP-Adapter brings."""
    name = "encoder_hid_proj.image_projection_layers.0.norm.bias"
    edit_weights(folder / UNET, lambda t: {**t, name: torch.zeros(4)})


def lora_beside(folder: Path) -> None:
    """As ``save_lora_weights`` leaves it."""
    save_file({"unet.lora": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")


def text_inversion(*tokens: str) -> Make:
    """Tokens and embeddings added, as a pipeline with ``load_textual_inversion`` is saved."""
    return also(add_tokens(*tokens), more_embeddings(len(tokens)))


def add_tokens(*tokens: str) -> Make:
    """Tokens added, and no embeddings."""

    def make(folder: Path) -> None:
        from transformers import CLIPTokenizerFast

        tokenizer = CLIPTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
        tokenizer.add_tokens(list(tokens))
        shutil.rmtree(folder / "tokenizer")
        tokenizer.save_pretrained(folder / "tokenizer")

    return make


def more_embeddings(count: int) -> Make:
    """Embeddings added, and no tokens."""

    def make(folder: Path) -> None:
        name = next(k for k in load_file(folder / TEXT) if k.endswith("token_embedding.weight"))
        size = load_file(folder / TEXT)[name].shape[0]
        more = torch.linspace(-1, 1, 32).expand(count, 32)
        edit_weights(folder / TEXT, lambda t: {**t, name: torch.cat([t[name], more])})
        edit_json(folder / "text_encoder" / "config.json", vocab_size=size + count)

    return make


def config(part: str, **changes: Any) -> Make:
    """Another config.json of a part."""
    return lambda folder: edit_json(folder / part / "config.json", **changes)


def lfs_pointer(folder: Path) -> None:
    """What git leaves where Git LFS is not installed."""
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167536\n")


def quantized(folder: Path) -> None:
    """Integers."""
    edit_weights(folder / UNET, lambda t: {k: v.to(torch.int8) for k, v in t.items()})


def single_file(ending: str) -> Make:
    """A file in place of the folder."""

    def make(folder: Path) -> Path:
        return (folder / UNET).rename(folder.with_name(f"v1-5-pruned{ending}"))

    return make


def single_file_inside(folder: Path) -> None:
    """A folder with a file that holds everything."""
    (folder / UNET).rename(folder / "v1-5-pruned.safetensors")
    (folder / "model_index.json").unlink()


def emptied(folder: Path) -> None:
    """A folder, and nothing in it."""
    shutil.rmtree(folder)
    folder.mkdir()


def other_weights(**changes: Any) -> Make:
    """A U-Net of another configuration, with weights to match."""

    def make(folder: Path) -> None:
        from diffusers import UNet2DConditionModel

        config = {**json.loads((folder / "unet" / "config.json").read_text()), **changes}
        shutil.rmtree(folder / "unet")
        torch.manual_seed(1)
        model = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
        model.save_pretrained(folder / "unet")

    return make


def old_names(folder: Path) -> None:
    """Weights as the libraries called them when Stable Diffusion 1.x came out; the tokenizer in two files."""

    def vae(name: str) -> str:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, before in old.items():
            name = name.replace(f"mid_block.attentions.0.{new}.", f"mid_block.attentions.0.{before}.")
        return name

    edit_weights(folder / VAE, lambda t: {vae(k): v for k, v in t.items()})
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    edit_weights(
        folder / TEXT, lambda t: {f"text_model.{k.removeprefix('text_model.')}": v for k, v in t.items()} | positions
    )
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    remove("tokenizer/tokenizer.json")(folder)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    edit_json(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])


def own_code(part: str, cls: str) -> Make:
    """A part whose class is in a file of the folder that leaves a mark when it is run."""

    def make(folder: Path) -> None:
        mark = folder.parent / "ran"
        for place in (folder, folder / part):
            (place / "custom.py").write_text(
                f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass {cls}: pass\n"
            )
        edit_json(folder / "model_index.json", **{part: ["custom", cls]})

    return make


def also(*makes: Make) -> Make:
    """One after another."""

    def make(folder: Path) -> None:
        for each in makes:
            each(folder)

    return make
