"""Closed-world conversion: every array of a file is read, every parameter is written, all else is one error.

A `Rule` says how one named array and the parameters it holds turn into each other; it is exact in both directions, so the
same rules read originals, write them back and verify a checkpoint. Originals in several formats share this file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Rule:
    """How one array of a file and the parameters it holds turn into each other, bit for bit.

    Args:
        name: of the array.
        shape: of the array.
        options: the option behind each axis of the shape, for error messages.
        parameters: their names in the model.
        split: array -> one array a parameter.
        join: one array a parameter -> array, the inverse of `split`.
    """

    name: str
    shape: tuple[int, ...]
    options: tuple[str, ...]
    parameters: tuple[str, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[..., np.ndarray]


@dataclass
class Comparison:
    """How far a group of arrays lies from the parameters that were made of it."""

    group: str
    arrays: int = 0
    numbers: int = 0
    shape: tuple[int, ...] = ()  # of the largest array
    difference: float = 0.0
    exact: bool = True


class Source:
    """The named arrays of one file; numbers are read when they are asked for, as float32.

    Args:
        path: the file.
        dtypes: each array's dtype, by the name in the file.
        shapes: each array's shape, likewise.
        canonical: turns a name in the file into the name that rules know.

    Raises:
        ValueError: two arrays with one canonical name.
    """

    def __init__(
        self,
        path: Path,
        dtypes: Mapping[str, np.dtype | str],
        shapes: Mapping[str, tuple[int, ...]],
        canonical: Callable[[str], str] = str,
    ):
        self.path, self.rounded = path, []
        self.original: dict[str, str] = {}
        for name in shapes:
            known = canonical(name)
            if known in self.original:
                raise ValueError(f"{path} holds the same array twice: {self.original[known]!r} and {name!r}.")
            self.original[known] = name
        self.shapes = {known: tuple(shapes[name]) for known, name in self.original.items()}
        self.dtypes = {known: str(dtypes[name]) for known, name in self.original.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.original

    def is_float(self, name: str) -> bool:
        """Whether the array holds floating-point numbers."""
        return "float" in self.dtypes[name]

    def array(self, name: str) -> np.ndarray:
        """Read one array as float32; remembers in `rounded` where that cost digits."""
        raw = self._read(self.original[name])
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.ascontiguousarray(raw, dtype=np.float32).reshape(np.shape(raw))
            if raw.dtype.itemsize > 4 and name not in self.rounded and bool((array != raw).any()):
                self.rounded.append(name)
        return array

    def _read(self, name: str) -> np.ndarray:
        raise NotImplementedError


class Hdf5Source(Source):
    """The datasets of an HDF5 file.

    Args:
        path: the file.
        canonical: as in `Source`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no HDF5 file, or a broken one.
    """

    def __init__(self, path: str | Path, canonical: Callable[[str], str] = str):
        path = existing_file(path, "an HDF5 file of weights")
        found: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

        def note(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item.dtype, item.shape if item.shape is not None else ()

        try:
            with h5py.File(path, "r") as file:
                file.visititems(note)
        except PermissionError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is no complete HDF5 file ({path.stat().st_size:,} bytes): {_reason(error)}. Fetch it again, and "
                "compare its size."
            ) from error
        super().__init__(
            path,
            {name: dtype for name, (dtype, _) in found.items()},
            {name: shape for name, (_, shape) in found.items()},
            canonical,
        )

    def _read(self, name: str) -> np.ndarray:
        try:
            with h5py.File(self.path, "r") as file:
                return file[name][()]
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path}: dataset {name!r} cannot be read: {_reason(error)}. Fetch the file again."
            ) from error


class TorchSource(Source):
    """The tensors of a PyTorch state dict, loaded with `weights_only=True`.

    Args:
        path: the file.
        canonical: as in `Source`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PyTorch file, a broken one, or holds something else than named tensors.
    """

    def __init__(self, path: str | Path, canonical: Callable[[str], str] = str):
        import torch

        path = existing_file(path, "a PyTorch state dict")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except (
            Exception
        ) as error:  # torch has no one error for broken files: EOF, pickle, zip, runtime, key, ...
            raise ValueError(
                f"{path} is no complete PyTorch state dict ({path.stat().st_size:,} bytes): {_reason(error)}. Fetch it "
                "again, or save a plain state_dict() with torch.save; pickled objects are not loaded, for safety."
            ) from error
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
        ):
            raise ValueError(f"{path} must hold a state dict: names and tensors. Found {_describe(state)}.")
        self.state = {name: value.detach() for name, value in state.items()}
        super().__init__(
            path,
            {name: str(value.dtype).removeprefix("torch.") for name, value in state.items()},
            {name: tuple(value.shape) for name, value in state.items()},
            canonical,
        )

    def _read(self, name: str) -> np.ndarray:
        import torch

        tensor = self.state[name]
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class ClosedWorld:
    """Rules over one or more files; refuses what is missing, misshapen, left over, no number or never written.

    Args:
        described_by: what says how the files should look, for messages ("options.json").
        hint: the option that is likely wrong when an array of this name is missing or left over; "" for none.
    """

    def __init__(self, described_by: str, hint: Callable[[str], str] = lambda name: ""):
        self.described_by, self.hint = described_by, hint
        self.rules: list[tuple[Source, Rule]] = []
        self.notes: list[str] = []
        self._sources: list[Source] = []
        self._left: set[tuple[int, str]] = set()

    def add(self, source: Source, rules: Sequence[Rule]) -> None:
        """Read these arrays of a file."""
        if all(source is not known for known in self._sources):
            self._sources.append(source)
        self.rules += [(source, rule) for rule in rules]

    def leave(self, source: Source, name: str, why: str | None = None) -> None:
        """Leave an array unread on purpose; the reason goes into `notes`."""
        self._left.add((id(source), name))
        if why is not None:
            self.notes.append(f"{source.path.name}: {source.original[name]} is left unread: {why}")

    def build(self, model_class: type, config: object):
        """A model with all its parameters taken from the files, in float32 and evaluation mode.

        Args:
            model_class: of the model.
            config: its config.

        Returns:
            The model.

        Raises:
            ValueError: all mismatches in one message, by file, array, found and expected shape.
        """
        import torch

        with torch.device("meta"):
            model = model_class(config)
        self._check_structure()
        state = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self._arrays().items()
        }
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        made = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if wanted != made:
            wrong = sorted(name for name in wanted.keys() | made.keys() if wanted.get(name) != made.get(name))
            raise ValueError(
                f"{self.described_by} does not describe the model's parameters: "
                + "; ".join(f"{name} needs {wanted.get(name)}, made {made.get(name)}" for name in wrong)
            )
        model.load_state_dict(state, assign=True)
        return model.eval()

    def compare(self, state: Mapping[str, object]) -> list[Comparison]:
        """Read every array again and compare it with a model's parameters.

        Args:
            state: the model's `state_dict()`.

        Returns:
            One `Comparison` a group of arrays; `exact` says that writing the parameters back gives the same bits.
        """
        groups: dict[str, Comparison] = {}
        for source, rule in self.rules:
            name = source.original[rule.name].rpartition("/" if "/" in rule.name else ".")[0] or rule.name
            group = groups.setdefault(name, Comparison(name))
            array = source.array(rule.name)
            found = [state[parameter].numpy() for parameter in rule.parameters]
            for expected, parameter in zip(rule.split(array), found, strict=True):
                largest = np.abs(expected - parameter).max(initial=0.0)
                group.difference = max(group.difference, float(largest))
            group.exact &= np.ascontiguousarray(rule.join(*found)).tobytes() == array.tobytes()
            group.shape = max(group.shape, array.shape, key=lambda shape: int(np.prod(shape)))
            group.arrays, group.numbers = group.arrays + 1, group.numbers + array.size
        return list(groups.values())

    def _arrays(self) -> dict[str, np.ndarray]:
        """All parameters; refuses numbers that are not finite."""
        made, broken = {}, []
        for source, rule in self.rules:
            array = source.array(rule.name)
            if bad := array.size - int(np.isfinite(array).sum()):
                broken.append(f"{source.original[rule.name]!r} ({bad:,} of {array.size:,} numbers)")
                continue
            made.update(zip(rule.parameters, rule.split(array), strict=True))
        if broken:
            files = ", ".join(str(source.path) for source in self._sources)
            raise ValueError(
                f"{files}: NaN or infinite weights in {', '.join(broken)}. The file is damaged or its training diverged; "
                "fetch it again or take an earlier checkpoint."
            )
        for source in self._sources:
            if source.rounded:
                self.notes.append(f"{source.path.name}: float64 rounded to float32 in {source.rounded}")
        return made

    def _check_structure(self) -> None:
        problems = []
        for source in self._sources:
            rules = {rule.name: rule for owner, rule in self.rules if owner is source}
            found = [f"    {line}" for line in self._mismatches(source, rules)]
            if found:
                problems += [f"  in {source.path}:", *found]
        if problems:
            raise ValueError(
                "\n".join([f"The weights are not those that {self.described_by} describes.", *problems])
            )

    def _mismatches(self, source: Source, rules: Mapping[str, Rule]) -> list[str]:
        lines = []
        left = [name for owner, name in self._left if owner == id(source)]
        for title, names in (
            ("missing", [name for name in rules if name not in source]),
            ("never read", [name for name in source.original if name not in rules and name not in left]),
        ):
            hints = sorted({hint for name in names if (hint := self.hint(name))})
            reason = f"; see option {', '.join(hints)}" if hints else ""
            shown = [source.original.get(name, name) for name in names]
            if shown:
                lines.append(f"{title}: {shown}{reason}")
        for name, rule in rules.items():
            if name not in source:
                continue
            shape, label = source.shapes[name], source.original[name]
            if not source.is_float(name):
                lines.append(f"{label} holds {source.dtypes[name]}, expected floating-point numbers")
            elif shape != rule.shape:
                blamed = rule.options
                if len(shape) == len(rule.shape):
                    axes = zip(shape, rule.shape, rule.options, strict=True)
                    blamed = [option for size, wanted, option in axes if size != wanted]
                blamed = ", ".join(dict.fromkeys(option for option in blamed if option))
                lines.append(
                    f"{label} has shape {shape}, expected {rule.shape}"
                    + (f"; see option {blamed}" * bool(blamed))
                )
                if shape == rule.shape[::-1]:
                    lines[-1] += " (is it transposed?)"
        return lines


def existing_file(path: str | Path, what: str) -> Path:
    """The path, if a file lies there.

    Args:
        path: where to look.
        what: what was expected, for the message.

    Returns:
        The path.

    Raises:
        FileNotFoundError: nothing lies there.
        ValueError: a folder lies there.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected {what}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected {what}.")
    return path


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {[str(key) for key in list(value)[:5]]}"
    return f"a {type(value).__name__}"


__all__ = [
    "HDF5_SIGNATURE",
    "ClosedWorld",
    "Comparison",
    "Hdf5Source",
    "Rule",
    "Source",
    "TorchSource",
    "existing_file",
]
