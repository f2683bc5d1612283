from collections.abc import Callable
from typing import Any

MODEL_CLASS_MAPPING: dict[str, type] = {}


def register_auto_model(name: str) -> Callable[[type], type]:
    def decorator(cls: type) -> type:
        MODEL_CLASS_MAPPING[name] = cls
        return cls

    return decorator


def registered(name: str) -> Any:
    return MODEL_CLASS_MAPPING.get(name)
