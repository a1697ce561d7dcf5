"""The sums for a small pretrained model, through the same door as every generator of the task library."""

from edgewise.lab.words import make_task


def test_small_sums_are_many_distinct_and_scored_exactly():
    task = make_task("edgewise.lab.sums:small_sums", n_train=1000, n_held_out=200)
    rows = task.train + task.held_out
    assert len({row["prompt"] for row in rows}) == 1200
    for row in rows:
        sum_ = row["prompt"].rpartition(":")[2].rstrip("= ")
        first, *rest = sum_.split()
        total = int(first)
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            total += int(number) if sign == "+" else -int(number)
        assert row["answer"] == str(total)
    row = task.train[0]
    try:
        assert task.reward([f"It is {row['answer']}.", "It is 99.", ""], [row] * 3) == [1.0, 0.0, 0.0]
    finally:
        task.close()
