"""What bars of progress show."""

import pytest

from lightning_psp.functional.progress import progress_bar


@pytest.mark.parametrize(
    ("total", "done", "shown"),
    [(49, 23, " 23/49 ["), (None, 22, "22 product ["), (2_000_000, 1_000_000, " 1.00M/2.00M [")],
)
def test_few_are_counted_in_whole_numbers_and_many_by_thousands(total, done, shown):
    with progress_bar(total, "product") as bar:
        bar.update(done)
        assert shown in str(bar)
