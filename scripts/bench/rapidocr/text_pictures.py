"""Draw pictures with text for RapidOCR's networks: OUT/scenes for the detector, OUT/turned for the classifier of orientation,
OUT/lines for the reader.

Usage: text_pictures.py PHOTOS OUT

PHOTOS has the folders calib and eval; each of the three gets a folder of either name, from its photos alone. Fonts are those
that matplotlib ships. Seeded: the same photos give the same pictures.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

SCENES, LINES = 64, 256
"""Pictures of a kind and part."""
SCENE = 480
LINE = (320, 48)
"""Width and height in pixels of a line, as RapidOCR hands lines to its reader."""
FONT_NAMES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral")
FONTS = tuple(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf") for name in (*FONT_NAMES, "STIXGeneralBol"))
_SIGNS = """EXIT Stop open push pull Caution room Level north Gate Platform ticket boarding Total date price lot serial model
type volt water Coffee bakery street Avenue hotel please keep clear danger Welcome pharmacy
parking private road slow school 24h"""
WORDS = tuple(_SIGNS.split())


def random_text(rng: Generator, words: int) -> str:
    """So many words, of which about a quarter are numbers."""
    numbers = (str(rng.integers(1, 10 ** int(rng.integers(2, 6)))) if rng.random() < 0.25 else "" for _ in range(words))
    return " ".join(number or str(rng.choice(WORDS)) for number in numbers)


def text_picture(rng: Generator, text: str, height: int) -> Image.Image:
    """Text of one colour, RGBA, transparent around it or on a plate of another brightness."""
    font = ImageFont.truetype(str(FONTS[int(rng.integers(len(FONTS)))]), height)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    ink, plate = (dark, light) if rng.random() < 0.6 else (light, dark)
    alpha = 0 if rng.random() < 0.35 else 255
    picture = Image.new("RGBA", (right - left + 12, bottom - top + 12), (*map(int, plate), alpha))
    ImageDraw.Draw(picture).text((6 - left, 6 - top), text, font=font, fill=(*map(int, ink), 255))
    return picture


def draw_scene(rng: Generator, photo: Path) -> Image.Image:
    """A photo (SCENE, SCENE) with two to six texts, some of them slanted."""
    scene = Image.open(photo, formats=("PNG",)).convert("RGB").resize((SCENE, SCENE))
    for _ in range(int(rng.integers(2, 7))):
        text = text_picture(rng, random_text(rng, int(rng.integers(1, 4))), int(rng.integers(18, 57)))
        if rng.random() < 0.4:
            text = text.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC, expand=True)
        x, y = (int(rng.integers(0, max(1, SCENE - size))) for size in text.size)
        scene.paste(text, (x, y), text)
    return scene


def draw_line(rng: Generator, photo: Path) -> Image.Image:
    """One line of text of LINE's size on a piece of a photo."""
    width, height = LINE
    source = Image.open(photo, formats=("PNG",)).convert("RGB").resize((SCENE, SCENE))
    x, y = int(rng.integers(SCENE - width)), int(rng.integers(SCENE - height))
    line = source.crop((x, y, x + width, y + height))
    text = text_picture(rng, random_text(rng, int(rng.integers(1, 4))), int(rng.integers(28, 40)))
    text = text.resize((min(text.width, width), min(text.height, height)), Image.Resampling.BICUBIC)
    line.paste(text, (int(rng.integers(max(1, (width - text.width) // 2))), (height - text.height) // 2), text)
    return line


def draw_turned(rng: Generator, photo: Path) -> Image.Image:
    """A line, upside down half of the time."""
    line = draw_line(rng, photo)
    return line.rotate(180) if rng.random() < 0.5 else line


KINDS = (("scenes", draw_scene, SCENES), ("lines", draw_line, LINES), ("turned", draw_turned, LINES))


def main(photos: Path, out: Path) -> None:
    """Draw the pictures of every kind for both parts."""
    for part, name in enumerate(("calib", "eval")):
        files = sorted(path for path in (photos / name).iterdir() if path.suffix == ".png")
        for seed, (kind, draw, count) in enumerate(KINDS, start=1):
            rng, folder = np.random.default_rng((seed, part)), out / kind / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw(rng, files[number % len(files)]).save(folder / f"{number:03d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
