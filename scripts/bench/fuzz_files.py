"""Break files of every format that the toolkit reads, in the way of that format; `fuzz.py` runs the commands on them.

Every function takes the bytes of a good file and a generator of random numbers; equal seeds give equal bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from fuzz_values import HOSTILE, JSON_VALUES, MARKER
from PIL import Image


class RunsCode:
    """Unpickling this writes the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path(MARKER), "code ran")


def broken_bytes(data: bytes, rng: Random) -> bytes:
    """Truncated, flipped, emptied, doubled, or with something else inside: as on a bad disk, whatever the format."""
    at = rng.randrange(len(data) + 1)
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 3, 50)) if data else 0):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    choices = (data[:at], bytes(flipped), b"", data + data, data[:at] + rng.randbytes(20) + data[at:], rng.randbytes(500))
    return rng.choice((*choices, bytes(flipped), data[: min(at, 64)], b"\0" * 4096, data + b"\n"))


def broken_json(data: bytes, rng: Random) -> bytes:
    """One value replaced, removed, renamed or added, anywhere; or no JSON at all."""
    if rng.random() < 0.12:
        return rng.choice(
            (b"[" * 200_000, b"[]", b"", b"{}", b"null", b"\xff\xfe{}", b'{"a": ' * 50_000, b"1" * 10_000, data[:-9])
        )
    value = json.loads(data)
    holders: list[Any] = [value]
    for holder in holders:
        holders += [
            item for item in (holder.values() if isinstance(holder, dict) else holder) if isinstance(item, (dict, list))
        ]
    holder = rng.choice([h for h in holders if h] or [value])
    key = rng.choice(sorted(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    action = rng.random()
    if action < 0.7:
        holder[key] = rng.choice(JSON_VALUES)
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice((HOSTILE, "", "__class__", "schema_version", "unknown"))] = holder.pop(key)
    else:
        holder.extend(holder * 3)
    return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()


def broken_npy(data: bytes, rng: Random) -> bytes:
    """Another shape or type in the header, other numbers, or a pickle."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    action = rng.randrange(9)
    if action == 0:
        return broken_bytes(data, rng)
    if action == 1:
        return b"\x93NUMPY\x01\x00" + pickle.dumps(RunsCode())
    if action in (2, 3):
        shape = rng.choice(((2**40,), (2**20, 2**20, 3), (-1, 4), (0,), (), (10**30,), array.shape[:-1]))
        return _npy_header(shape, array.dtype.str, rng.choice((True, False))) + bytes(array.tobytes())
    if action == 4:
        dtype = rng.choice(("|O", "<M8[s]", "<U1000000", "<f16", "|V4", "<c8", "x"))
        return _npy_header(array.shape, dtype, False) + bytes(array.tobytes())
    changed = [array.astype(np.float64), array.astype(np.int8), array[:0], array[..., None], array.astype(object), array.T]
    if action == 5 and array.dtype.kind == "f" and array.size:
        array = array.copy()
        array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, 3e38))
        changed = [array]
    stream = io.BytesIO()
    np.save(stream, rng.choice(changed), allow_pickle=True)
    return stream.getvalue()


def _npy_header(shape: tuple[int, ...], dtype: str, order: bool) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def broken_zip(data: bytes, rng: Random) -> bytes:
    """A ZIP file (.npz, a bundle) with a member broken, removed, renamed, doubled or added; or broken bytes."""
    if rng.random() < 0.25:
        return broken_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    action = rng.random()
    if action < 0.6:
        breaker = {".npy": broken_npy, ".json": broken_json, ".onnx": broken_onnx}.get(Path(name).suffix, broken_bytes)
        members[at] = name, breaker(content, rng)
    elif action < 0.7:
        del members[at]
    else:
        extra = rng.choice((name, "../escape.npy", "/abs.npy", HOSTILE, "x" * 60_000, ""))
        members.append((extra, rng.choice((content, b"", bytes(50_000_000)))))
    stream = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if action >= 0.7 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for member, content in members:
            archive.writestr(zipfile.ZipInfo(member), content, kind)
    return stream.getvalue()


def broken_onnx(data: bytes, rng: Random) -> bytes:
    """A graph with one thing wrong: names, types, shapes, attributes, edges, weights, opset, external data, metadata."""
    if rng.random() < 0.15:
        return broken_bytes(data, rng)
    model = onnx.load_model_from_string(data)
    rng.choice((_break_node, _break_weight, _break_ends, _break_model))(model, rng)
    return bytes(model.SerializeToString())


def _break_node(model: onnx.ModelProto, rng: Random) -> None:
    graph, action = model.graph, rng.randrange(5)
    node = rng.choice([node for node in graph.node if node.input])
    if action == 0:
        node.name = rng.choice((HOSTILE, "", graph.node[0].name, "x" * 100_000))
    elif action == 1:
        node.op_type = rng.choice(("NoSuchOp", "Relu", "Loop", "If", HOSTILE))
    elif action == 2:
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nothing", node.output[0], graph.output[0].name))
    elif action == 3:
        del graph.node[rng.randrange(len(graph.node))]
    else:
        node = rng.choice([node for node in graph.node if node.attribute])
        attribute = rng.choice(node.attribute)
        attribute.i, attribute.f = rng.choice((-1, 0, 2**62)), rng.choice((float("nan"), 0.0, 1e38))
        del attribute.ints[:]
        attribute.ints.extend(rng.choice(([], [0], [-(2**62)] * 9)))


def _break_weight(model: onnx.ModelProto, rng: Random) -> None:
    weight, action = rng.choice(model.graph.initializer), rng.randrange(4)
    if action == 0:
        del weight.dims[:]
        weight.dims.extend(rng.choice(((2**40,), (-1, 3), (0,), (2**31, 2**31), ())))
    elif action == 1:
        weight.data_type = rng.randrange(0, 30)
    elif action == 2:
        size = len(weight.raw_data)
        weight.raw_data = rng.choice((b"", weight.raw_data[:-3], np.full(size // 4, np.nan, "<f4").tobytes()))
    else:
        weight.data_location = onnx.TensorProto.EXTERNAL
        where = rng.choice(("/etc/passwd", "../key.pem", "/dev/zero", "missing", "a\0b", ""))
        weight.external_data.add(key="location", value=where)


def _break_ends(model: onnx.ModelProto, rng: Random) -> None:
    ends = rng.choice((model.graph.input, model.graph.output))
    sides, action = ends[0].type.tensor_type.shape.dim, rng.randrange(5)
    if action == 0:
        sides[rng.randrange(len(sides))].dim_value = rng.choice((0, -5, 2**40, 7))
    elif action == 1:
        ends[0].name = rng.choice((HOSTILE, "", "nothing"))
    elif action == 2:
        ends.append(ends[0])
    elif action == 3:
        del ends[:]
    else:
        ends[0].type.tensor_type.elem_type = rng.randrange(0, 24)


def _break_model(model: onnx.ModelProto, rng: Random) -> None:
    entries = list(model.metadata_props)
    if entries and rng.random() < 0.6:
        entry = rng.choice(entries)
        entry.value = broken_json(entry.value.encode(), rng).decode(errors="replace") if entry.value[:1] == "{" else HOSTILE
    else:
        model.opset_import[0].version = rng.choice((-1, 0, 1, 12, 999, 2**62))


def broken_checkpoint(data: bytes, rng: Random) -> bytes:
    """A safetensors file with another header, or other numbers."""
    if rng.random() < 0.2:
        return broken_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], bytearray(data[8 + size :])
    action = rng.randrange(4)
    if action == 0:
        return struct.pack("<Q", rng.choice((0, 2**63, size + 1, 2**40))) + header + body
    fields = json.loads(header)
    if action == 1 and "ufovit" in fields.get("__metadata__", {}):
        fields["__metadata__"]["ufovit"] = broken_json(fields["__metadata__"]["ufovit"].encode(), rng).decode(errors="replace")
        header = json.dumps(fields).encode()
    elif action == 2:
        header = broken_json(header, rng)
    else:
        at = rng.randrange(0, len(body) - 4, 4)
        body[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, 1e-40)))
    return struct.pack("<Q", len(header)) + header + body


def pickled(_data: bytes, rng: Random) -> bytes:
    """What stands in a .pth file: a payload, no weights, weights of nothing, half a file."""
    import torch

    stream = io.BytesIO()
    torch.save(
        rng.choice(({"model": RunsCode()}, RunsCode(), {"model": torch.ones(3)}, [1, 2], {"x": HOSTILE}, {}, None)), stream
    )
    return rng.choice((stream.getvalue(), broken_zip(stream.getvalue(), rng), pickle.dumps(RunsCode())))


def broken_idx(data: bytes, rng: Random) -> bytes:
    """A compressed IDX file with another header, without its end, or with far too much in it."""
    plain = bytearray(gzip.decompress(data))
    action = rng.randrange(5)
    if action == 0:
        return broken_bytes(data, rng)
    if action == 1:
        return gzip.compress(bytes(300_000_000), 1)
    if action == 2:
        at = rng.randrange(0, min(16, len(plain)))
        plain[at] = rng.randrange(256)
    elif action == 3:
        return bytes(plain)
    else:
        plain = plain[: rng.randrange(len(plain))]
    return gzip.compress(bytes(plain), 1)


def broken_image(_data: bytes, rng: Random) -> bytes:
    """A picture that is cut, huge, narrow, of an odd kind, or none."""
    picture = Image.fromarray(np.frombuffer(rng.randbytes(24 * 20 * 3), np.uint8).reshape(20, 24, 3))
    kind = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"))
    action = rng.randrange(8)
    if action == 0:
        return _png(rng.choice(((2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 5), (1, 2_000_000), (20_000, 20_000))))
    if action == 1:
        picture = picture.resize(rng.choice(((1, 1), (1, 5000), (3000, 1), (2, 17))))
    stream = io.BytesIO()
    if action == 2:
        Image.new("L", (9000, 9000)).save(stream, "PNG")
    elif action == 3:
        picture.convert(rng.choice(("1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"))).save(stream, "TIFF")
    else:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 6, 9, 2**15))
        picture.save(stream, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return broken_bytes(stream.getvalue(), rng) if action > 4 else stream.getvalue()


def _png(size: tuple[int, int]) -> bytes:
    """A PNG whose header promises a size, with a line of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def broken_list(data: bytes, rng: Random) -> bytes:
    """A list of images with a line that is wrong, or another encoding."""
    lines = data.splitlines(keepends=True)
    odd = [b"missing.png,ant", b"/dev/zero,ant", b"../../../etc/passwd,bee", b'"open,ant', b"\0\0,\0", b"photos,ant", b","]
    odd += [b"photos/ant/0.png", b"photos/ant/0.png,fox", b"\xff\xfe,ant", b"a" * 200_000 + b",b", b"\x1b[2J,ant"]
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(odd) + b"\n")
    whole = b"".join(lines)
    return rng.choice((whole, whole, whole, broken_bytes(data, rng), data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data))


def broken_key(data: bytes, rng: Random) -> bytes:
    """A PEM file that is cut, of another kind, or far too long."""
    other = b"-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----\n"
    swapped = data.replace(b"PRIVATE", b"PUBLIC") if b"PRIVATE" in data else data.replace(b"PUBLIC", b"PRIVATE")
    return rng.choice((broken_bytes(data, rng), broken_bytes(data, rng), other, swapped, data * 5000, b"\n" * 10, data.upper()))
