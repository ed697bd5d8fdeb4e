"""Rules of LSTM and GRU with their default activations.

LSTM    h = o tanh(c), |h| <= 1;  c = f c' + i g with gates between 0 and 1 and |g| <= 1: |c| grows by 1 at most per step
GRU     h lies between h' and a tanh
"""

from edge.stability.bounds.affine_ball import SLACK
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.value import Value, bounded, unbounded


def recurrent(operator: Operator) -> list[Value]:
    """All outputs: the states of every step, the last state, and for LSTM the last cell."""
    value = operator.value(0)
    if operator.attribute("activations", None) is not None or value is None or value.shape is None:
        return [unbounded(shape) for shape in operator.shapes]
    start, cell = operator.value(5), operator.value(6)
    lstm = operator.op_type == "LSTM"
    reach = 1 + 16 * SLACK
    if not lstm and operator.has_input(5):
        reach = max(reach, start.largest) if start is not None else float("inf")
    outputs = [bounded(shape, -reach, reach) for shape in operator.shapes[:2]]
    if lstm and len(operator.shapes) > 2:
        steps = value.shape[1 if operator.attribute("layout", 0) else 0]
        first = 0.0 if not operator.has_input(6) else float("inf") if cell is None else cell.largest
        most = (first + steps) * (1 + 16 * SLACK * steps)
        outputs.append(bounded(operator.shapes[2], -most, most))
    return outputs
