"""The garbage collector and what is loaded to stay."""

import gc

from finetune_assets.processes.garbage import set_aside_garbage


def test_what_is_loaded_is_never_collected_again() -> None:
    before = gc.get_freeze_count()
    try:
        with set_aside_garbage():
            assert not gc.isenabled()
            loaded: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(loaded)
    finally:
        gc.unfreeze()
