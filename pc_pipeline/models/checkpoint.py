"""Models on disk: safetensors weights named by their digest, and a JSON card swapped in last.

Here: `register`, `save_model`, `load_model`, `read_card`, `data_fingerprint`. Not here: where a
model's folder lies (`core.store.Store.model_folder`) and how training resumes (`training.loop`).

    <folder>/<sha256 of the weights>.safetensors
    <folder>/card.json      class, config, weights digest, data fingerprint, metrics, seeds, versions

Weights are written before the card that names them, so a reader sees the old model or the new one.
The card carries a digest of itself; a changed card or changed weights refuse to load. No pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.store import replace_file

CARD: Final = "card.json"
FORMAT: Final = 1
_HOME: Final = "pc_pipeline.models."  # cards may name classes of this room only
_RESERVED: Final = (
    "format",
    "class",
    "module",
    "config",
    "weights",
    "n_parameters",
    "versions",
    "code",
    "card_sha256",
)


class Persistable(Protocol):
    """What can be saved: a config (dataclass) that rebuilds it, and a dict of tensors."""

    config: Any

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """All that training found, by name."""

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], /) -> Any:
        """Take those tensors back."""


_CLASSES: dict[str, tuple[type, type]] = {}
_T = TypeVar("_T")


def register(config_type: type) -> Callable[[type[_T]], type[_T]]:
    """Class decorator: `cls(config_type(**card['config']))` rebuilds the model.

    Fields of the config are JSON values; lists in the card come back as tuples.
    """

    def keep(cls: type[_T]) -> type[_T]:
        _CLASSES[cls.__name__] = (cls, config_type)
        return cls

    return keep


def data_fingerprint(*parts: Any) -> str:
    """Hex digest of frames, arrays, tensors and plain values, in order: the training data's name."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pl.DataFrame):
            digest.update(json.dumps([part.columns, [str(t) for t in part.dtypes], part.height]).encode())
            digest.update(part.hash_rows(seed=0).to_numpy().tobytes())
        elif isinstance(part, torch.Tensor | np.ndarray):
            array = np.ascontiguousarray(part.detach().cpu().numpy() if torch.is_tensor(part) else part)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def save_model(folder: Path | str, model: Persistable, card: Mapping[str, Any] | None = None) -> Path:
    """Write weights and card; returns the card's path.

    Args:
        folder: made if missing; an earlier model in it is replaced.
        model: an instance of a registered class.
        card: what training knows: 'data_fingerprint', 'metrics', 'seeds', and anything else of JSON.

    Raises:
        ModelError: the class is not registered, the card names a reserved key, or weights are not finite.
    """
    folder = Path(folder)
    extra = dict(card or {})
    clash = sorted(set(extra) & set(_RESERVED))
    if clash:
        raise ModelError(
            "the card would overwrite what the checkpoint writes", expected="other keys", got=clash
        )
    cls = type(model)
    if _CLASSES.get(cls.__name__, (None,))[0] is not cls:
        raise ModelError("this class cannot be saved", expected=sorted(_CLASSES), got=cls.__name__)
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    _check_finite(tensors, folder)
    payload = dump_tensors(tensors)
    digest = hashlib.sha256(payload).hexdigest()
    with replace_file(folder / f"{digest}.safetensors") as temporary:
        temporary.write_bytes(payload)
    body = {
        "format": FORMAT,
        "class": cls.__name__,
        "module": cls.__module__,
        "config": dataclasses.asdict(model.config),
        "weights": digest,
        "n_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "versions": _versions(),
        "code": _code_version(cls),
        "data_fingerprint": None,
        "metrics": {},
        "seeds": {},
        **extra,
    }
    body = json.loads(_canonical(body))
    body["card_sha256"] = _card_digest(body)
    previous = _previous_weights(folder)
    with replace_file(folder / CARD) as temporary:
        temporary.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # The weights just replaced stay for one more save: a reader may hold the old card open.
    for stale in folder.glob("*.safetensors"):
        if stale.stem not in (digest, previous):
            stale.unlink(missing_ok=True)
    return folder / CARD


def read_card(folder: Path | str) -> dict[str, Any]:
    """The card of a saved model, checked against its own digest.

    Raises:
        ModelError: there is none, it is no JSON, of another format, or changed after it was written.
    """
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("no trained model here", expected=CARD, got="nothing", where=folder) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError("the model card is not JSON", got=error, where=path) from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        got = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ModelError("the model card has another format", expected=FORMAT, got=got, where=path)
    digest = _card_digest(card)
    if card.get("card_sha256") != digest:
        raise ModelError(
            "the model card was changed after it was written",
            expected=card.get("card_sha256"),
            got=digest,
            where=path,
        )
    return card


def load_model(folder: Path | str) -> tuple[Any, dict[str, Any]]:
    """(model, card); networks come back in eval mode on the CPU.

    Raises:
        ModelError: card or weights are missing, changed, of an unknown class, or do not fit the config.
    """
    folder = Path(folder)
    card = read_card(folder)
    cls, config_type = _find_class(card, folder)
    try:
        config = config_type(**{name: _tuples(value) for name, value in card["config"].items()})
    except (TypeError, AttributeError) as error:
        raise ModelError("the card's config does not fit the class", got=error, where=folder) from None
    model = cls(config)
    tensors = _read_weights(folder, card["weights"])
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ModelError("the weights do not fit the network", got=error, where=folder) from None
    if isinstance(model, torch.nn.Module):
        model.eval()
    return model, card


def _find_class(card: Mapping[str, Any], folder: Path) -> tuple[type, type]:
    """The registered class a card names; its module is imported if it is one of ours."""
    name, module = str(card.get("class")), str(card.get("module"))
    if name not in _CLASSES and module.startswith(_HOME):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ModelError("the card names an unknown module", got=error, where=folder) from None
    if name not in _CLASSES or _CLASSES[name][0].__module__ != module:
        raise ModelError("the card names an unknown class", expected=sorted(_CLASSES), got=name, where=folder)
    return _CLASSES[name]


def _read_weights(folder: Path, digest: str) -> dict[str, torch.Tensor]:
    path = folder / f"{digest}.safetensors"
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise ModelError("the weights the card names are missing", expected=path.name, where=folder) from None
    got = hashlib.sha256(payload).hexdigest()
    if got != digest:
        raise ModelError(
            "the weights were changed after they were written", expected=digest, got=got, where=path
        )
    try:
        return load_tensors(payload)
    except SafetensorError as error:
        raise ModelError("the weights are no safetensors file", got=error, where=path) from None


def _previous_weights(folder: Path) -> str | None:
    try:
        return read_card(folder)["weights"]
    except ModelError:
        return None


def _check_finite(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError("weights are not finite", expected="finite numbers", got=name, where=folder)


def _plain(value: Any) -> Any:
    """JSON form of numpy and torch scalars and arrays, paths and dataclasses."""
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), default=_plain)


def _card_digest(card: Mapping[str, Any]) -> str:
    body = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _versions() -> dict[str, str]:
    found = {}
    for name in ("pc-pipeline", "torch", "numpy", "polars", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _code_version(cls: type) -> str:
    """Digest of the source of the class's module: which code the weights were trained for."""
    try:
        return hashlib.sha256(inspect.getsource(inspect.getmodule(cls) or cls).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return "unknown"
