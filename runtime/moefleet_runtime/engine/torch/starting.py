"""From settings to the parts of a running engine: device, type of numbers, checkpoint, cache, scheduler.

Everything that can be wrong with a configuration or a checkpoint is found here, before the first request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moefleet_runtime.engine.arguments import TorchArguments
from moefleet_runtime.engine.base import OPTIONS, EngineInfo, EngineSettings, StartFailed
from moefleet_runtime.engine.prefixes import PrefixLog
from moefleet_runtime.engine.torch.attention import Reader, gathered
from moefleet_runtime.engine.torch.blocks import BlockPool
from moefleet_runtime.engine.torch.cache import block_bytes, blocks_that_fit, free_bytes, make_cache
from moefleet_runtime.engine.torch.config import ModelConfig, read_model_config
from moefleet_runtime.engine.torch.fixed import FixedDecode
from moefleet_runtime.engine.torch.guides import Guides
from moefleet_runtime.engine.torch.model import Model
from moefleet_runtime.engine.torch.runner import ModelRunner, Runner
from moefleet_runtime.engine.torch.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Started:
    info: EngineInfo
    runner: Runner
    scheduler: Scheduler
    threads: int
    # None: the folder has no tokenizer that guided decoding could use.
    guides: Guides | None = None
    prefixes: PrefixLog = field(default_factory=PrefixLog)


def start(settings: EngineSettings) -> Started:
    arguments = settings.arguments
    if not isinstance(arguments, TorchArguments):
        raise StartFailed(
            "EngineArgumentInvalid", f"engine.args: wanted Torch's, found {type(arguments).__name__}"
        )
    _refuse_what_is_not_built(settings)
    if settings.model_path is None:
        raise StartFailed(
            "ModelSourceMissing", "model.source: the Torch engine needs the folder of a checkpoint"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(settings, device)
    threads = threads_for(wanted=arguments.threads, cpus=settings.cpus)
    torch.set_num_threads(threads)
    config = read_model_config(settings.model_path)
    context_length = _context_length(settings, config)
    try:
        model = Model.load(
            settings.model_path,
            config,
            positions=context_length,
            device=device,
            dtype=dtype,
            read=_reader(device),
        )
        blocks = arguments.blocks or _blocks(
            settings,
            longest_blocks=-(-context_length // arguments.block_tokens),
            bytes_per_block=block_bytes(config, arguments.block_tokens, dtype),
            device=device,
        )
        cache = make_cache(
            config, blocks=blocks, block_tokens=arguments.block_tokens, device=device, dtype=dtype
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StartFailed("OutOfMemory", f"{settings.model_path}: {error}") from error
    except RuntimeError as error:
        # The CPU allocator has no type of its own for this.
        if "alloc" not in str(error):
            raise
        raise StartFailed("OutOfMemory", f"{settings.model_path}: {error}") from error
    prefixes = PrefixLog()
    pool = BlockPool(blocks=blocks, block_tokens=arguments.block_tokens, log=prefixes)
    scheduler = Scheduler(
        pool,
        max_batch_size=settings.max_batch_size,
        max_batch_tokens=settings.max_batch_tokens,
        reuse=settings.kv_reuse,
    )
    guides = _guides(settings.model_path, config)
    decode, tune_s = None, 0.0
    if device.type == "cuda" and arguments.cuda_graphs:
        began_s = time.monotonic()
        decode = FixedDecode(
            model,
            cache,
            device,
            most_rows=scheduler.max_running,
            table_blocks=-(-context_length // arguments.block_tokens),
        )
        tune_s = time.monotonic() - began_s
    info = EngineInfo(
        model_name=settings.model_name,
        context_length=context_length,
        vocabulary_size=config.vocabulary_size,
        eos_token_ids=config.eos_token_ids,
        kv_max_tokens=blocks * arguments.block_tokens,
        max_batch_size=scheduler.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        engine_version=f"torch {torch.__version__}",
        hidden_size=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        supports=OPTIONS if guides is not None else OPTIONS - {"guide"},
        tune_s=tune_s,
    )
    return Started(info, ModelRunner(model, cache, device, decode), scheduler, threads, guides, prefixes)


def _reader(device: torch.device) -> Reader:
    if device.type != "cuda":
        return gathered
    # Local: its module needs Triton, which only torch for GPUs brings.
    from moefleet_runtime.engine.torch.kernels.mla_decode import by_kernel

    return by_kernel


def threads_for(*, wanted: int, cpus: int) -> int:
    """As asked (0: all), but never more than the pod may use: torch alone would start one for each core of the node."""
    return max(1, min(wanted or cpus, cpus))


def _guides(folder: Path, config: ModelConfig) -> Guides | None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        return Guides(file, vocabulary_size=config.vocabulary_size, eos_token_ids=config.eos_token_ids)
    except ValueError:
        # The server reads the same file and says what is wrong with it; one that only llguidance cannot read serves
        # everything but guides.
        return None


def _refuse_what_is_not_built(settings: EngineSettings) -> None:
    parallel = {
        "tensor": settings.tensor_parallel,
        "expert": settings.expert_parallel,
        "attentionData": int(settings.attention_data_parallel) + 1,
    }
    for name, ways in parallel.items():
        if ways > 1:
            raise StartFailed(
                "EngineArgumentInvalid",
                f"engine.parallelism.{name}: the Torch engine runs on one device, found {ways} ways",
            )
    if settings.kv_precision not in ("Auto", settings.precision):
        raise StartFailed(
            "EngineArgumentInvalid",
            f"engine.kvCache.precision: the Torch engine keeps its cache in the precision of the model "
            f"({settings.precision}): wanted that or Auto, found {settings.kv_precision}",
        )


def _dtype(settings: EngineSettings, device: torch.device) -> torch.dtype:
    """Auto is float32 on the CPU, where bfloat16 was slower at every batch size up to 64, and bfloat16 on a GPU."""
    match settings.precision:
        case "Auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        case "BF16":
            return torch.bfloat16
        case other:
            raise StartFailed(
                "EngineArgumentInvalid", f"engine.precision: wanted Auto or BF16 for Torch, found {other}"
            )


def _context_length(settings: EngineSettings, config: ModelConfig) -> int:
    if settings.context_length > config.max_positions:
        raise StartFailed(
            "EngineArgumentInvalid",
            f"model.contextLength: {settings.model_path} serves at most {config.max_positions} tokens, "
            f"found {settings.context_length}",
        )
    return settings.context_length


def _blocks(
    settings: EngineSettings, *, longest_blocks: int, bytes_per_block: int, device: torch.device
) -> int:
    return blocks_that_fit(
        free_bytes=free_bytes(device),
        fraction=settings.kv_memory_fraction,
        bytes_per_block=bytes_per_block,
        most=longest_blocks * settings.max_batch_size,
        least=longest_blocks,
    )
