"""The kernels at both ends of a captured decode step."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels import decode_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, WIDTH, SIZE, GROUPS, MOST = 9, 6, 4, 2, 7
SPARE = ROWS - 1


def check(spoil=lambda state: None) -> None:
    rows = torch.tensor([5, 0, 7, SPARE, 2, SPARE], device=DEVICE)
    state = {
        "positions": torch.tensor([2, 3, 15, 99, 6, -1], device=DEVICE),
        "new_blocks": torch.full((GROUPS, MOST), -1, dtype=torch.int32, device=DEVICE),
        "table": torch.arange(6 * GROUPS * WIDTH, dtype=torch.int32, device=DEVICE).view(6, GROUPS, WIDTH),
    }
    for group in range(GROUPS):
        state["new_blocks"][group, 1:3] = torch.tensor([40, 41]) + 10 * group
    row_table = torch.zeros(ROWS, GROUPS * WIDTH, dtype=torch.int32, device=DEVICE)
    last = torch.arange(ROWS, device=DEVICE) * 10
    new_blocks_GN = state["new_blocks"][:, :6]
    wanted = decode_step.reference_advance(rows, state["positions"], new_blocks_GN, state["table"], last, SIZE)
    assert wanted["slots"].tolist() == [
        [0 * SIZE + 3, 40 * SIZE, 41 * SIZE, -1, 49 * SIZE + 3, -1],
        [6 * SIZE + 3, 50 * SIZE, 51 * SIZE, -1, 55 * SIZE + 3, -1],
    ]
    spoil(state)
    got = {name: torch.full((6,), 7, dtype=torch.int64, device=DEVICE) for name in ("next", "tokens")}
    got["slots"] = torch.full((GROUPS, MOST), 7, dtype=torch.int64, device=DEVICE)
    got["contexts"] = torch.full((6,), 7, dtype=torch.int32, device=DEVICE)
    decode_step.advance(
        rows, state["positions"], got["next"], got["contexts"], got["slots"], got["tokens"],
        state["new_blocks"], state["table"], row_table, last, SIZE,
    )  # fmt: skip
    assert (got["slots"][:, 6:] == 7).all()
    got |= {"positions": state["positions"], "table": state["table"], "slots": got["slots"][:, :6]}
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name
    live = rows != SPARE
    assert torch.equal(got["next"][live], wanted["positions"][live] + 1)
    assert row_table[0, [1, WIDTH + 1]].tolist() == [40, 50] and row_table[7, [4, WIDTH + 4]].tolist() == [41, 51]
    assert row_table.count_nonzero() == 4
    assert (state["new_blocks"] == -1).all()  # a block is handed over once


def test_advance():
    check()


@pytest.mark.parametrize("name", ["positions", "table"])
def test_wrong_state_is_seen(name):
    with pytest.raises(AssertionError):
        check(lambda state: state[name].add_(1))


def test_a_lost_block_is_seen():
    with pytest.raises(AssertionError):
        check(lambda state: state["new_blocks"].fill_(-1))


def test_remember():
    rows = torch.tensor([3, 1, SPARE], device=DEVICE)
    last = torch.full((ROWS,), 5, device=DEVICE)
    out = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    decode_step.remember(torch.tensor([70000, -1, 9], device=DEVICE), rows, last, out)
    assert out.tolist() == [70000, -1, 9]
    assert last[[3, 1]].tolist() == [70000, 0]  # the next input of a row without a token is a valid id
    assert (last[[0, 2, 4, 5, 6, 7]] == 5).all()
