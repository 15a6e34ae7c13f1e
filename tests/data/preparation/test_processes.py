"""Work in several processes, with the results in order."""

import os
import sys
import time

import pytest

from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.preparation.encode import Batch, _encode
from pgolf.data.preparation.processes import count_cores, in_processes
from pgolf.errors import UserError


def slow_square(common: int, item: int) -> tuple[int, int]:
    time.sleep(0.05 * (item % 3 == 0))
    return common + item * item, os.getpid()


def fail(common: int, item: int) -> int:
    if item == 2:
        raise UserError(f"item {item}")
    return item


def die(common: int, item: int) -> int:
    os._exit(9)


def encode_and_list_modules(front_end: FrontEnd, batch: Batch) -> tuple[int, list[str]]:
    return len(_encode(front_end, batch).ids), sorted(sys.modules)


def test_results_are_in_order_and_from_other_processes():
    found = list(in_processes(slow_square, 100, iter(range(20)), 2))
    assert [item for item, _ in found] == list(range(20))
    assert [result[0] for _, result in found] == [100 + item * item for item in range(20)]
    assert os.getpid() not in {result[1] for _, result in found}


def test_no_more_items_are_drawn_than_the_workers_need():
    drawn = []
    results = in_processes(slow_square, 0, (drawn.append(item) or item for item in range(100)), 2)
    next(results)
    assert len(drawn) <= 8
    results.close()


def test_an_error_is_the_callers_and_a_dead_worker_a_sentence():
    with pytest.raises(UserError, match="item 2"):
        list(in_processes(fail, 0, range(5), 1))
    with pytest.raises(UserError, match=r"a worker process died .*data\.workers"):
        list(in_processes(die, 0, range(5), 1))


def test_workers_of_a_preparation_import_no_torch(prepared):
    batch = Batch("train", 0, [])
    ((_, (count, modules)),) = in_processes(encode_and_list_modules, prepared.front_end, [batch], 1)
    assert count == 0 and "pgolf.data.preparation.encode" in modules and "sentencepiece" in modules
    assert "torch" not in modules


def test_cores_are_those_of_this_process():
    assert 1 <= count_cores() <= (os.cpu_count() or 1)
