#!/usr/bin/env python3
"""Writes blocks.bin: random blocks of every GGUF type that Atoll reads, and the values that the
`gguf` package gives for them. Made with gguf 0.19.0, numpy 2.4.6.

  python make_blocks.py > blocks.bin              the file that is committed
  python make_blocks.py 1000000 > /tmp/blocks.bin more blocks, to compare by hand
                                                  (ATOLL_GGUF_BLOCKS=FILE storage_gguf_types_test)

Per type, little-endian: u32 number, u32 blocks, the blocks, their values as FP32. Scales are any F16
but NaN and infinity (negative, subnormal, zero); all other bits are random.
"""
import sys

import gguf
import numpy as np

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
         "Q6_K", "IQ4_NL", "IQ4_XS"]
# Byte offsets of the F16 numbers of a block.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "F16": [0]}
STEP = 20000


def finite_halves(rng, count):
    bits = rng.integers(0, 65536, count, dtype=np.uint16)
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0x83FF, bits).astype(np.uint16)


def blocks_of(rng, name, count):
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        raw[:, at:at + 2] = finite_halves(rng, count).view(np.uint8).reshape(count, 2)
    if name in ("F32", "BF16"):
        exponent = raw[:, size - 1] & 0x7F
        raw[:, size - 1] = np.where(exponent == 0x7F, raw[:, size - 1] ^ 0x40, raw[:, size - 1])
    return kind, raw


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    rng = np.random.default_rng(18)
    out = sys.stdout.buffer
    for name in TYPES:
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        of_type = count if values > 1 else count * 16
        done = 0
        while done < of_type:
            step = min(STEP, of_type - done)
            kind, raw = blocks_of(rng, name, step)
            with np.errstate(all="ignore"):
                numbers = gguf.quants.dequantize(raw, kind).astype("<f4").reshape(-1)
            assert numbers.size == step * values
            out.write(np.array([kind.value, step], dtype="<u4").tobytes() + raw.tobytes() + numbers.tobytes())
            done += step


if __name__ == "__main__":
    main()
