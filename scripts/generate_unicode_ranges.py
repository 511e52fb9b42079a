#!/usr/bin/env python3
"""Writes text/unicode_ranges_data.inc: the general category of every code point.

Unicode 16.0 (what the Hugging Face tokenizers library uses) beside 14.0 (what PCRE2 10.42 uses).
    python3.11 -m pip install unicodedata2==16.0.0
    python3.11 scripts/generate_unicode_ranges.py > text/unicode_ranges_data.inc
Python 3.11's own unicodedata module is version 14.0.0.
"""

import sys
import unicodedata

import unicodedata2


def main():
    versions = (unicodedata2.unidata_version, unicodedata.unidata_version)
    if versions != ("16.0.0", "14.0.0"):
        sys.exit(f"needs Unicode 16.0.0 and 14.0.0, found {versions[0]} and {versions[1]}")

    ranges = []  # [first, last, category in 16.0, category in 14.0]
    for code_point in range(0x110000):
        character = chr(code_point)
        key = [unicodedata2.category(character), unicodedata.category(character)]
        if ranges and ranges[-1][2:] == key:
            ranges[-1][1] = code_point
        else:
            ranges.append([code_point, code_point] + key)

    print("// Written by scripts/generate_unicode_ranges.py; don't edit.")
    print("// {first, last, general category in Unicode 16.0, in Unicode 14.0}; covers U+0000..10FFFF.")
    print("// clang-format off")
    line = ""
    for first, last, new, old in ranges:
        entry = f"{{0x{first:X},0x{last:X},k{new},k{old}}},"
        if len(line) + len(entry) > 100:
            print(line)
            line = ""
        line += entry
    print(line)
    print("// clang-format on")


if __name__ == "__main__":
    main()
