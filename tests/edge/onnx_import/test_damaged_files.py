"""Damaged files end in one of the product's errors, or are imported: never in an exception of a library."""

import random
from collections import Counter

import onnx
from import_graphs import attention_opset23, constant_if, data_if, local_function, loop, plain, resized, save, shuffled

from calib.errors import UfovitError
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions

TEXTS = ("x", "", "zz", "Conv", "Softmax", "Resize", "If", "Attention", "com.microsoft", "conv_0_out", "const_0")
NUMBERS = (-1, 0, 1, 2, 3, 6, 7, 10, 11, 16, 2**31 - 1, 2**40)


def messages(message):
    """A message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from messages(inner)


def damage(model, rng):
    """Change, remove or repeat a field; what protobuf refuses to hold is left as it is."""
    message = rng.choice(list(messages(model)))
    if not message.ListFields():
        return
    field, value = rng.choice(message.ListFields())
    new = {field.TYPE_STRING: TEXTS, field.TYPE_INT64: NUMBERS, field.TYPE_INT32: NUMBERS, field.TYPE_ENUM: NUMBERS}.get(
        field.type
    )
    action = rng.random()
    try:
        if field.is_repeated:
            at = rng.randrange(len(value))
            if action < 0.3:
                del value[at]
            elif field.type == field.TYPE_MESSAGE:
                (value.add() if action < 0.6 else value[at]).CopyFrom(value[rng.randrange(len(value))])
            elif new:
                value[at] = rng.choice(new)
        elif action < 0.2 or field.type == field.TYPE_BYTES:
            message.ClearField(field.name)
        elif new:
            setattr(message, field.name, rng.choice(new))
    except (ValueError, TypeError):
        pass


def test_damaged_graphs_are_refused_in_words(tmp_path):
    makers = (plain, lambda: plain(9), local_function, constant_if, data_if, loop, resized, shuffled, attention_opset23)
    ends = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        model = rng.choice(makers)()
        for _ in range(rng.choice((1, 1, 2))):
            damage(model, rng)
        try:
            import_onnx(save(model, tmp_path), ImportOptions())
            ends["imported"] += 1
        except UfovitError as error:
            ends[error.what] += 1
    assert ends["imported"] > 5
    assert len(ends) > 8


def test_damaged_bytes_are_refused_in_words(tmp_path):
    data = plain().SerializeToString()
    for seed in range(20):
        rng = random.Random(seed)
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path = tmp_path / "net.onnx"
        path.write_bytes(damaged[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            assert isinstance(import_onnx(path, ImportOptions()).model, onnx.ModelProto)
        except UfovitError as error:
            assert str(path) in str(error)  # noqa: PT017  # either end is right
