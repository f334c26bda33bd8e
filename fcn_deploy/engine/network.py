"""An ONNX graph as a TensorRT network: parsed, checked in itself, and named."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt_flavour import Flavour
from fcn_deploy.errors import EnvironmentFault, ModelError
from fcn_deploy.onnx_parts import GraphPart


@dataclass
class Network:
    """A parsed network and what must live as long as it is built from.

    Attributes:
        builder: The library's builder.
        definition: The network.
        keep: Weights and parser, whose memory the network reads until it is built.
    """

    builder: Any
    definition: Any
    keep: list[Any] = field(default_factory=list)


def parse(flavour: Flavour, part: GraphPart, source: str, name: str) -> Network:
    """Parse a part of an exported graph.

    Args:
        flavour: The library.
        part: What to parse.
        source: How messages call the file.
        name: What the network is to be called, in the plan and for good.

    Raises:
        ModelError: The library refuses the graph; names the operator.
        EnvironmentFault: It cannot build on this machine.
    """
    trt = flavour.trt
    flavour.messages.clear()
    # The library logs while it holds a lock that the end of a builder waits for: a collection of
    # garbage that began in our logger, and met an old builder, would never end.
    gc.collect()
    try:
        builder = trt.Builder(flavour.logger)
    except TypeError as error:  # pybind's "factory function returned nullptr"
        raise EnvironmentFault(
            f"{flavour.name} {flavour.version} cannot build here: {flavour.first_error}.",
            "TensorRT needs a GPU to build; --flavour rtx does not.",
        ) from error
    # Typed networks are the only ones that TensorRT 11 and RTX have; TensorRT 10 must be told.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, flavour.logger)
    content = part.proto.SerializeToString()
    if not parser.parse(content):
        first = parser.get_error(0) if parser.num_errors else None
        cause = flavour.first_error
        if first is not None:
            cause = f"{first.node_operator()} ({first.node_name()}): {first.desc()}"
        raise ModelError(f"{flavour.name} {flavour.version} refuses {source}: {cause}")
    network.name = name
    parsed = Network(builder, network, [parser, content])
    if part.step > 1:
        _assert_multiples(trt, parsed, part.step)
    return parsed


def _assert_multiples(trt: Any, parsed: Network, step: int) -> None:
    """Let the engine itself refuse heights and widths that no runtime checks.

    Without it ONNX Runtime and TensorRT return masks of another size for 321x480, silently.
    """
    network, operations = parsed.definition, trt.ElementWiseOperation
    steps = np.array([step, step], np.int64)
    parsed.keep.append(steps)

    def elementwise(first: Any, second: Any, operation: Any) -> Any:
        return network.add_elementwise(first, second, operation).get_output(0)

    shape = network.add_shape(network.get_input(0)).get_output(0)
    hw = network.add_slice(shape, (1,), (2,), (1,)).get_output(0)  # of (N, H, W, 3)
    multiple = network.add_constant((2,), trt.Weights(steps)).get_output(0)
    whole = elementwise(hw, multiple, operations.FLOOR_DIV)
    again = elementwise(whole, multiple, operations.PROD)
    network.add_assertion(
        elementwise(again, hw, operations.EQUAL), f"height and width must be multiples of {step}"
    )
