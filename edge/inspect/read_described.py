"""Read a file that is to be described. In a build folder it must be the recorded one; the bytes are those that were hashed."""

from pathlib import Path

from engines.build_folder.file_names import RECORD
from engines.build_folder.folder import BuildFolder
from engines.build_folder.safe_files import is_there, read_contained


def read_described(path: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes of a file, and a fact: which records hold their digest.

    Raises ArtifactError for a file that cannot be read, that a record beside it states another digest of, or whose build
    folder is under construction.
    """
    file = path.resolve()
    if not is_there(file.parent / RECORD):
        return read_contained(file), {"recorded": f"not known: no {RECORD} beside it"}
    build = BuildFolder(file.parent)
    data, recorders = build.data(file.name), build.recorded.get(file.name, {})
    return data, {"recorded": f"with this digest in {' and '.join(recorders)}" if recorders else "nowhere beside it"}
