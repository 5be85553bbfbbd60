"""Make hida/assets/matte.safetensors from MediaPipe's selfie_segmentation.tflite.

    pip download mediapipe==0.10.21 --no-deps && unzip -j mediapipe-*.whl '*/selfie_segmentation.tflite'
    pip install ai-edge-litert
    python tools/convert_matte.py selfie_segmentation.tflite hida/assets/matte.safetensors

The weights are float16 in both files, so that nothing is rounded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from safetensors.torch import save_file

from hida.matte.network import SelfieSegmentation


def tensors(path: Path) -> list[torch.Tensor]:
    """Return weight and bias of every convolution, in the order of the operators, laid out as PyTorch has them."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    stored: dict[int, torch.Tensor] = {}  # by the tensor that DEQUANTIZE widens it to
    found: list[torch.Tensor] = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind == schema.BuiltinOperator.DEQUANTIZE:
            tensor = graph.tensors[operator.inputs[0]]
            values = np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes()
            array = np.frombuffer(values, np.float16).reshape(tensor.shape)
            stored[operator.outputs[0]] = torch.from_numpy(array.copy())
            continue
        given = [stored[index] for index in operator.inputs if index in stored]
        if not given:
            continue
        weight, bias = given
        if kind == schema.BuiltinOperator.DEPTHWISE_CONV_2D:  # 1, height, width, channels
            weight = weight.permute(3, 0, 1, 2)
        elif kind == schema.BuiltinOperator.CONV_2D:  # outputs, height, width, inputs
            weight = weight.permute(0, 3, 1, 2)
        else:  # the transposed convolution, MediaPipe's own: outputs, height, width, inputs
            weight = weight.permute(3, 0, 1, 2)
        found += [weight.contiguous(), bias]
    return found


def main(source: Path, target: Path) -> None:
    names = list(SelfieSegmentation().state_dict())
    save_file(dict(zip(names, tensors(source), strict=True)), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
