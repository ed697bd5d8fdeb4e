"""Every numerical tolerance of the product in one table, each with its reason.

Three tables of another kind stand elsewhere: what a rebuild may lose against its baseline (`edge.gate.gate_tolerances`, and for
answers the task's own `gate_tolerances`), from which error on a layer is at fault (`edge.attribution.diagnosis`), and which
margins an XNorm needs (`edge.stability.verdict`).
"""

from __future__ import annotations

from calib import metrics

EXPORT_SQNR_DB = 80.0
"""FP32 logits of ONNX Runtime against torch. FP32 carries 24 bits (about 150 dB for one rounding); thousands of reordered
sums and the foldings leave more than 100 dB on the networks measured. A wrong folding, a lost bias or another resize shows
below 60 dB."""

SIMPLIFY_SQNR_DB = 100.0
"""FP32 logits after graph simplification against before, both in ONNX Runtime: only constants are folded, so that what
differs is the choice of kernels."""

IMPORT_SQNR_DB = 80.0
"""FP32 outputs of an imported or rewritten graph against the file as given, and of an image alone against the same in a batch.
Other kernels and orders of summation leave more than 100 dB; a norm with another eps, or GELU by tanh for GELU by erf, shows
below 70 dB."""

IMPORT_WIDENED_SQNR_DB = 30.0
"""The same for files that compute in FP16 or BF16 themselves: their own rounding, 66 or 48 dB for one operation, is lost over
some hundred layers, and the imported graph has none."""

IMPORT_ABS = 1e-6
"""Difference of outputs that counts as none whatever the signal: a sigmoid of FP32 near zero is a multiple of 2^-24, so that a
map of probabilities in which nothing was detected (1e-6 everywhere) has no SQNR to speak of."""

IMPORT_EQUAL_SHARE = 0.999
"""Of the elements of whole-number outputs, such as classes of pixels: where two of them tie, a last bit decides."""

TYPED_FP16_SQNR_DB = 30.0
"""FP16 graph against the FP32 graph it was typed from, logits. FP16 carries 11 bits (about 66 dB for one rounding), lost in
part over some hundred layers; an overflow, a lost cast or a wrong island shows below 20 dB."""

TYPED_INT8_LOSS_DB = 3.0
"""What typing may take from the SQNR of an INT8 graph against its float graph, where that SQNR is itself below
TYPED_FP16_SQNR_DB: FP16 at most doubles the error's power. Networks with random weights at 224 and 448 px changed by -0.9 to
+0.7 dB; an overflow takes all of it. Over all images, or of the median one: a classifier's image between two classes may lose
much more by one code that moves."""

RANDOM_WEIGHTS_COSINE = 0.9
"""Smallest cosine between engine and reference logits (centred over classes) for a network with random weights, which has no
accuracy to lose: only a broken engine falls below."""

PREPROCESS_ABS = 1e-4
"""A preprocessed image on this machine against the one stored in a bundle, in units of the standard deviation that it was
divided by. Resizing sums a few hundred products of at most 255 in FP32, in an order that differs between processors: about
1e-5. Another mean, another resize or BGR for RGB shows above 1e-2."""

PREPROCESS_LEVELS_SHARE = 0.01
"""Share of the pixels of a uint8 image that may differ by one level between machines: those that lie so near to a half that the
order of summing decides how they are rounded, one in ten thousand. Rounding down instead of to nearest moves half of them."""

SQNR_CAP_DB = metrics.SQNR_CAP_DB
"""Stands for "identical" in artifacts."""

RECOMPUTED = 1e-6
"""A figure that an artifact states against the same recomputed from the answers beside it: the same float64 sums in another
order."""
