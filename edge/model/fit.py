"""Will a model fit into this machine's memory? Asked before it is fetched, answered by the plan."""

from edge.board.plan import Board, Plan, Wish, make_plan, this_board
from edge.board.topology import read_topology
from edge.errors import NoMemoryError, TooLargeError
from edge.model.gguf import ModelInfo


def usual_plan(info: ModelInfo) -> Plan:
    """How a model runs on this processor where memory is no question; its footprint is what the model takes."""
    return make_plan(info, Wish(), Board(read_topology(), None), use_tuned=False)


def check_memory(name: str, n_file_bytes: int, info: ModelInfo | None, board: Board | None = None) -> None:
    """Raise TooLargeError if the machine could not hold the model even with nothing else running.

    info: None for a model in several parts, of which the bytes of the files are all that is known.
    """
    board = (board or this_board()).alone()
    if board.usable_bytes is None:
        return
    if info is None:
        if n_file_bytes > board.usable_bytes:
            raise TooLargeError(name, n_file_bytes, board.usable_bytes)
        return
    try:
        make_plan(info, Wish(), board, use_tuned=False)
    except NoMemoryError as error:
        raise TooLargeError(name, error.n_bytes_needed, error.n_bytes_usable, error.nearest) from None
