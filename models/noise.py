"""Counter-based noise: a value depends on (seed, stream, step, frame, element) and on nothing else.

Philox4x32-10 (Salmon et al., SC 2011) with Box-Muller, id "philox4x32-10/bm/v1": key = the 64-bit
seed, counter = (stream, step, frame, block), four words a block give four normals. Batch, worker,
window plan and resume point therefore cannot change a sample. The numpy functions are the
reference; torch (int64) is what runs. The integers, and uniforms, are the same bits on every device
and library. Normals go through log, sqrt, cos and sin of float64, which may differ in their last
bits between libraries and so, after rounding to fp32, by an ulp in rare values (numpy and torch
on x86: none of 3,145,728); on one machine they are the same bits always.
Letters: B batch, T frames, N blocks, 4 words of a block.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch

NOISE_ID = "philox4x32-10/bm/v1"

STREAMS = {
    "initial": 0,
    "train": 1,
    "step": 2,
    "augment": 3,
    "timestep": 4,
    "text": 5,
    "dropout": 6,
    "level": 7,
    "crop": 8,
    "mask": 9,
}

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_TWO_PI = 2.0 * np.pi
# Values drawn at once: the words of Philox are int64, some 30 times as large as the result.
_AT_ONCE = 2**22


def seed_for(*parts: str | int) -> int:
    """Return the 64-bit seed of an address: first 8 bytes of sha256 of the parts as JSON."""
    text = json.dumps(list(parts), ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def philox_numpy(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return the ten-round Philox words of counter (..., 4) under key (..., 2), all uint32."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [key[..., i].astype(np.uint64) for i in range(2)]
    for _ in range(_ROUNDS):
        first, second = (np.uint64(_MULTIPLIERS[0]) * c[0], np.uint64(_MULTIPLIERS[1]) * c[2])
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ k[0],
            second & np.uint64(_WORD),
            (first >> np.uint64(32)) ^ c[3] ^ k[1],
            first & np.uint64(_WORD),
        ]
        k = [(k[i] + np.uint64(_WEYL[i])) & np.uint64(_WORD) for i in range(2)]
    return np.stack(np.broadcast_arrays(*c), axis=-1).astype(np.uint32)


def normal_numpy(
    seed: int, *, stream: str, step: int, frames: Sequence[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Return the same normals as `normal` (within 2 ulp), by the numpy reference."""
    count = int(np.prod(shape, dtype=np.int64))
    blocks = np.arange(-(-count // 4), dtype=np.uint32)
    counter = np.zeros((len(frames), len(blocks), 4), dtype=np.uint32)
    counter[..., 0], counter[..., 1] = _stream(stream), _step(step)
    counter[..., 2] = np.asarray(frames, dtype=np.uint32)[:, None]
    counter[..., 3] = blocks
    words = philox_numpy(counter, np.array(_key(seed), dtype=np.uint32)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((words[..., 0::2] + 0.5) / 2.0**32))
    angle = (words[..., 1::2] + 0.5) * (_TWO_PI / 2.0**32)
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    flat = pairs.reshape(len(frames), -1)[:, :count]
    return flat.reshape(len(frames), *shape).astype(np.float32)


def philox(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the four output words (int64, 0 to 2^32-1) of four counter and two key words.

    Products wrap modulo 2^64; masking after the arithmetic shift gives the unsigned high word.
    """
    c, k = counter, key
    for _ in range(_ROUNDS):
        first, second = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        c = [
            ((second >> 32) & _WORD) ^ c[1] ^ k[0],
            second & _WORD,
            ((first >> 32) & _WORD) ^ c[3] ^ k[1],
            first & _WORD,
        ]
        k = [(k[i] + _WEYL[i]) & _WORD for i in range(2)]
    return c


def normal(
    seed: int, *, stream: str, step: int, frames: Sequence[int], shape: tuple[int, ...]
) -> torch.Tensor:
    """Return standard normals, fp32 (len(frames), *shape), each frame by its own number."""
    frames_BT = torch.tensor([list(frames)], dtype=torch.int64)
    return normals([seed], stream=stream, step=step, frames_BT=frames_BT, shape=shape)[0]


def normals(
    seeds: Sequence[int],
    *,
    stream: str,
    step: int,
    frames_BT: torch.Tensor,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return standard normals fp32 (B, T, *shape); row b equals `normal(seeds[b], ...)`.

    Computed in float64 and rounded once, so that the order of vector lanes does not show; a few frames
    at a time, so that a long video needs little more memory than its noise. On another device a value
    may differ in its last bit.
    """
    count = int(np.prod(shape, dtype=np.int64))
    drawn = torch.empty(*frames_BT.shape, count, device=device)
    group = max(1, _AT_ONCE // max(1, count * len(seeds)))
    for first_frame in range(0, frames_BT.shape[1], group):
        chosen = slice(first_frame, first_frame + group)
        words = _words(seeds, stream, step, frames_BT[:, chosen].to(device), blocks=-(-count // 4))
        first, second = _polar(words[0], words[1]), _polar(words[2], words[3])
        drawn[:, chosen] = torch.stack((*first, *second), dim=-1).flatten(2)[..., :count]
    return drawn.reshape(*frames_BT.shape, *shape)


def uniform(seed: int, *, stream: str, step: int, count: int) -> torch.Tensor:
    """Return `count` uniforms in [0, 1), float64 with 53 random bits each."""
    frames = torch.zeros(1, 1, dtype=torch.int64)
    words = _words([seed], stream, step, frames, blocks=-(-count // 2))
    pairs = [((words[i] >> 5) * 2**26 + (words[i + 1] >> 6)).double() for i in (0, 2)]
    return torch.stack(pairs, dim=-1).flatten()[:count] / 2.0**53


def _words(
    seeds: Sequence[int], stream: str, step: int, frames_BT: torch.Tensor, *, blocks: int
) -> list[torch.Tensor]:
    device = frames_BT.device
    keys_B2 = torch.tensor([_key(seed) for seed in seeds], dtype=torch.int64, device=device)
    key = [keys_B2[:, i, None, None] for i in range(2)]
    block_N = torch.arange(blocks, dtype=torch.int64, device=device)[None, None, :]
    zero = torch.zeros_like(block_N)
    counter = [zero + _stream(stream), zero + _step(step), frames_BT[:, :, None] + zero, block_N]
    return philox(counter, key)


def _polar(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    radius = torch.sqrt(-2.0 * torch.log((first.double() + 0.5) / 2.0**32))
    angle = (second.double() + 0.5) * (_TWO_PI / 2.0**32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _key(seed: int) -> tuple[int, int]:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is outside 0 to 2^64-1: derive it with noise.seed_for")
    return seed & _WORD, seed >> 32


def _stream(name: str) -> int:
    if name not in STREAMS:
        raise ValueError(f"unknown noise stream {name!r}: use one of {', '.join(STREAMS)}")
    return STREAMS[name]


def _step(step: int) -> int:
    if not 0 <= step <= _WORD:
        raise ValueError(f"noise step {step} is outside 0 to 2^32-1")
    return step
