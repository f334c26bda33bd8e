"""A FAKE of the building half of TensorRT: it has the names of one release, and builds nothing.

It writes down what is asked of it. Names that the real bindings of that release lack raise
AttributeError here, too: the lists in tests/data/tensorrt_api were read from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fcn_deploy.backends.tensorrt_flavour import Flavour
from fcn_deploy.engine.network import Network

API = Path(__file__).parent / "data" / "tensorrt_api"

Call = tuple[str, tuple[Any, ...]]
"""A method and its arguments; or ``=`` and a property, and what it was set to."""


class FakeObject:
    """FAKE of one of TensorRT's objects.

    Args:
        kind: Name of its class.
        names: Those that the class has.
        answers: What properties hold and methods return, by name; other methods return ``True``.

    Attributes:
        calls: What was asked of it, in order.
    """

    def __init__(self, kind: str, names: list[str], answers: dict[str, Any] | None = None) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "names", frozenset(names))
        object.__setattr__(self, "answers", answers or {})
        object.__setattr__(self, "calls", [])

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise AttributeError(f"{self.kind} of this release has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._require(name)
        self.calls.append((f"={name}", (value,)))

    def __getattr__(self, name: str) -> Any:
        self._require(name)
        answer = self.answers.get(name, True)
        if name in self.answers and not callable(answer):
            return answer

        def method(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, (*args, *kwargs.items())))
            return answer(*args, **kwargs) if callable(answer) else answer

        return method


class FakeEnumNames:
    """FAKE of an enum: its members are texts."""

    def __init__(self, kind: str, names: list[str]) -> None:
        self._kind, self._names = kind, frozenset(names)

    def __getattr__(self, name: str) -> str:
        if name not in self._names:
            raise AttributeError(f"{self._kind} of this release has no {name!r}")
        return f"{self._kind}.{name}"


class FakeBuilding:
    """FAKE of a release's module and builder.

    Args:
        release: Such as ``10.3``, of which there is a list of names.
        dla_cores: How many deep-learning accelerators it finds.
        takes_profiles: Whether it takes the profiles that it is given.
    """

    def __init__(self, release: str, *, dla_cores: int = 0, takes_profiles: bool = True) -> None:
        self.api = json.loads((API / f"tensorrt-{release}.json").read_text())
        self.profiles: list[FakeObject] = []
        self.cache = self._object("ITimingCache", serialize=lambda: memoryview(b"measured"))
        self.config = self._object(
            "IBuilderConfig",
            add_optimization_profile=lambda _: len(self.profiles) - 1 if takes_profiles else -1,
            create_timing_cache=lambda _: self.cache,
            get_timing_cache=lambda: self.cache,
        )
        self.builder = self._object(
            "Builder",
            create_builder_config=lambda: self.config,
            create_optimization_profile=self._profile,
            num_DLA_cores=dla_cores,
        )
        self.network = Network(self.builder, None)
        self.flavour = Flavour("tensorrt", self)

    class ILogger:
        """FAKE of ILogger."""

        INTERNAL_ERROR, ERROR = "INTERNAL_ERROR", "ERROR"

    def _object(self, kind: str, **answers: Any) -> FakeObject:
        return FakeObject(kind, self.api[kind], answers)

    def _profile(self) -> FakeObject:
        self.profiles.append(self._object("IOptimizationProfile"))
        return self.profiles[-1]

    @property
    def __version__(self) -> str:
        return str(self.api["__version__"])

    def __getattr__(self, name: str) -> FakeEnumNames:
        if name.startswith("_") or name not in self.api["top"]:
            raise AttributeError(f"this release has no {name!r}")
        return FakeEnumNames(name, self.api[name])

    @property
    def calls(self) -> list[Call]:
        """What was asked of the configuration."""
        calls: list[Call] = self.config.calls
        return calls
