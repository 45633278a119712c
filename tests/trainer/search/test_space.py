"""The space of a search: Hydra's grammar as Optuna's distributions."""

import pytest

from peakpoint.base.errors import UserError
from peakpoint.trainer.search.space import Bounds, corners, grid, split_words

optuna = pytest.importorskip("optuna")


def dimension(word):
    [found], fixed = split_words([word])
    assert fixed == []
    return found


def drawn(word, count=20):
    """What a study draws from one override, by a fixed seed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = dimension(word)
    return study, [found.draw(study.ask()) for _ in range(count)]


def test_what_is_not_swept_is_fixed():
    space, fixed = split_words(["seed=1", "optimizer=sgd,adamw", "data.root='a,b'"])
    assert [each.key for each in space] == ["optimizer"]
    assert fixed == ["seed=1", "data.root='a,b'"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("optimizer=sgd,adamw", {"optimizer=sgd", "optimizer=adamw"}),
        ("pruning.target=choice(0.5,0.7)", {"pruning.target=0.5", "pruning.target=0.7"}),
        ("epochs=range(1,6,2)", {"epochs=1", "epochs=3", "epochs=5"}),
        ("epochs=int(interval(1,3))", {"epochs=1", "epochs=2", "epochs=3"}),
        ("logger=[console],[]", {"logger=[console]", "logger=[]"}),
    ],
)
def test_every_listed_value_is_drawn_and_no_other(word, values):
    assert set(drawn(word, 50)[1]) == values


def test_a_number_lies_between_its_bounds_and_is_uniform_in_its_logarithm():
    _, words = drawn("optimizer.lr=tag(log,interval(1e-4,1e-1))", 200)
    numbers = [float(word.removeprefix("optimizer.lr=")) for word in words]
    assert all(1e-4 <= number <= 1e-1 for number in numbers)
    assert 0.3 < sum(number < 10**-2.5 for number in numbers) / 200 < 0.7
    assert dimension("optimizer.lr=interval(0.1,1)").bounds == Bounds(0.1, 1.0)


def test_a_trial_that_is_drawn_again_has_the_same_words():
    study, [first, *_] = drawn("optimizer.lr=interval(0,1)")
    trial = optuna.trial.Trial(study, study.trials[0]._trial_id)
    assert dimension("optimizer.lr=interval(0,1)").draw(trial) == first


def test_a_grid_has_every_combination_in_order():
    space, _ = split_words(["optimizer=sgd,adamw", "epochs=range(1,3)"])
    listed, points = grid(space)
    assert [(point["optimizer"], point["epochs"]) for point in points] == [
        ("sgd", "1"), ("sgd", "2"), ("adamw", "1"), ("adamw", "2"),
    ]  # fmt: skip
    assert [each.bounds for each in listed] == [None, None]


def test_the_corners_hold_every_value_and_both_bounds():
    space, _ = split_words(["optimizer=sgd,adamw,adam", "optimizer.lr=interval(0.1,0.2)"])
    assert corners(space) == [
        ["optimizer=sgd", "optimizer.lr=0.1"],
        ["optimizer=adamw", "optimizer.lr=0.1"],
        ["optimizer=adam", "optimizer.lr=0.1"],
        ["optimizer=sgd", "optimizer.lr=0.2"],
    ]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optimizer.lr=interval(2,1)", "the smaller one first"),
        ("optimizer.lr=tag(log,interval(0,1))", "begins above 0"),
        ("seed=range(0,2000)", "from 1 to 1000 values"),
    ],
)
def test_an_impossible_dimension_is_refused(word, sentence):
    with pytest.raises(UserError, match=sentence):
        split_words([word])


def test_a_grid_of_an_interval_or_of_too_many_points_is_refused():
    with pytest.raises(UserError, match=r"optimizer.lr=A,B,C"):
        grid([dimension("optimizer.lr=interval(0,1)")])
    with pytest.raises(UserError, match="A grid of 10000 trials"):
        grid([dimension("seed=range(0,100)"), dimension("epochs=range(1,101)")])
