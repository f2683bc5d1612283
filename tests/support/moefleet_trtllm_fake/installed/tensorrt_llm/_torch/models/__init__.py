from . import modeling_deepseekv3

__all__ = ["modeling_deepseekv3"]
