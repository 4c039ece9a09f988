import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import prepare_cores


def test_sides_run_in_turn_and_write_the_same_tokens() -> None:
    (ratio,) = prepare_cores.measure(megabytes=0.1, at_least=1, rounds=1, vocab_size=300)
    assert ratio > 0
