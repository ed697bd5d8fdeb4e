"""What improves a plain post-training quantization: one method per file, each of them optional.

`effort.py` says which of them an effort uses, `apply.py` carries them out; calib/README.md says what each of them gains.
"""
