"""Make hida/assets/matte.safetensors from MediaPipe's selfie_segmentation.tflite, and compare both on photos.

    pip download mediapipe==0.10.21 --no-deps && unzip -j mediapipe-*.whl '*/selfie_segmentation.tflite'
    pip install ai-edge-litert
    python tools/convert_matte.py selfie_segmentation.tflite hida/assets/matte.safetensors [PHOTO...]

The weights are float16 in both files, so that nothing is rounded. A photo is squeezed into the square of 256 pixels;
the line for it says how far the outputs, from 0 to 1, are apart at most.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file

from hida.images.io import read_image
from hida.matte.network import SIDE, SelfieSegmentation


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


def compare(source: Path, target: Path, photos: list[Path]) -> None:
    """Print the largest difference between the original, run by LiteRT, and the network here, for each photo."""
    original = Interpreter(str(source), num_threads=1)
    original.allocate_tensors()
    network = SelfieSegmentation.from_file(target)
    for photo in photos:
        square = np.asarray(read_image(photo).resize((SIDE, SIDE)), np.float32)[None] / 255
        original.set_tensor(original.get_input_details()[0]["index"], square)
        original.invoke()
        expected = original.get_tensor(original.get_output_details()[0]["index"])[0, :, :, 0]
        found = network(torch.from_numpy(square).permute(0, 3, 1, 2))[0, 0].numpy()
        print(f"{photo}: {np.abs(found - expected).max():.1e}")


def main(source: Path, target: Path, photos: list[Path]) -> None:
    names = list(SelfieSegmentation().state_dict())
    save_file(dict(zip(names, tensors(source), strict=True)), target)
    compare(source, target, photos)


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    main(given[0], given[1], given[2:])
