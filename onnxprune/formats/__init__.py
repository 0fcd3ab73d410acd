"""How sparse or clustered weights lie in a file, one file per format (docs/sparse-format.md)."""

from onnxprune.formats.bsr import check_bsr, pack_bsr, unpack_bsr
from onnxprune.formats.csr import check_csr, pack_csr, unpack_csr
from onnxprune.formats.nm import check_nm, pack_nm, position_bits, unpack_nm
from onnxprune.formats.pointers import index_type
from onnxprune.formats.values import decode, encode, round_values
from onnxprune.formats.weight import Weight, read_weight, unpack

__all__ = [
    "Weight", "check_bsr", "check_csr", "check_nm", "decode", "encode", "index_type", "pack_bsr", "pack_csr", "pack_nm",
    "position_bits", "read_weight", "round_values", "unpack", "unpack_bsr", "unpack_csr", "unpack_nm",
]  # fmt: skip
