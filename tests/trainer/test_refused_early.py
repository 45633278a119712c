"""What a command line gets wrong is one line before any data is read, and before torch is imported."""

import pytest

from peakpoint.trainer.config import unheeded
from peakpoint.trainer.config.check import checked
from tests.conftest import TINY, process, run_main
from tests.trainer.parts import compose

T = ("model=lenet5", "data=npz", "data.root=nowhere", "device=cpu")  # there are no data: none is looked for

REFUSED = [
    (
        ["checkpoint/policy=[best]", "checkpoint.interval=5"],
        "checkpoint.interval has no effect here, since nothing refers to it: add interval to checkpoint/",
    ),
    (
        ["~checkpoint.policy.interval", "checkpoint.interval_steps=5"],
        "checkpoint.interval_steps has no effect here, since nothing refers to it: add interval to",
    ),
    (
        ["~checkpoint.policy.wall_clock", "checkpoint.interval_minutes=5"],
        "checkpoint.interval_minutes has no effect here, since nothing refers to it: add wall_clock to",
    ),
    (
        ["checkpoint/policy=[]", "checkpoint.keep_last=5"],
        "checkpoint.keep_last has no effect here, since nothing refers to it: add interval or wall_clock",
    ),
    (
        ["checkpoint.mirror.keep=2"],
        "checkpoint.mirror.keep has no effect without a mirror: add checkpoint.mirror.url=URL, or leave it",
    ),
    (
        ["pruning.end_step=10", "pruning.end_fraction=0.5"],
        "pruning.end_fraction has no effect beside pruning.end_step: keep one of them.",
    ),
]


@pytest.mark.parametrize(("typed", "sentence"), REFUSED, ids=[" ".join(typed) for typed, _ in REFUSED])
def test_one_line_before_anything_is_read_or_written(train, tmp_path, typed, sentence):
    done = train(*T, *typed)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {sentence}")
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "typed",
    [
        ["pruning.criterion=bitter0", "pruning.target=0"],
        ["checkpoint.interval=5", "checkpoint.keep_last=1"],
        ["checkpoint/policy=[wall_clock]", "checkpoint.keep_last=1", "checkpoint.interval_minutes=1"],
        ["checkpoint.mirror.url=/tmp/x", "checkpoint.mirror.keep=2"],
        ["pruning.end_step=10", "pruning.start_fraction=0.0"],
        ["pruning.end_fraction=1.0"],
        ["scheduler.warmup_epochs=3", "epochs=3"],
    ],
    ids=" ".join,
)
def test_what_has_an_effect_is_let_through_to_the_data(train, typed):
    err = train(*T, *typed).refusal()
    assert err.startswith("error: nowhere/train.npz is missing") or "mirror" in err


def test_an_optimizer_that_prunes_by_its_state_prunes_by_magnitude_too(train):
    assert train(*T, "optimizer=adamwprune", "pruning=magnitude").err.startswith("error: nowhere/train.npz")


def test_torch_is_not_imported_for_a_refusal(tmp_path):
    code = (
        "import sys, train\n"
        "sys.argv = ['train.py', 'pruning.schedule=cubicc', 'data=cifar10', 'pruning.target=0.5']\n"
        "try:\n    train.main()\n"
        "finally:\n    print('torch' in sys.modules, 'numpy' in sys.modules)\n"
    )
    done = process("-c", code)
    assert done.stdout == "False False\n"
    assert done.stderr.startswith("error: pruning.schedule=cubicc is not a choice: did you mean cubic? ")


def test_a_sweep_with_a_wrong_job_does_not_begin_and_names_it(train, tmp_path):
    err = train("-m", *TINY, "seed=1,2", "pruning.schedule=cubic,cubicc", "hydra.sweep.dir=sweep").refusal()
    assert err.startswith(
        "error: job 1 (seed=1 pruning.schedule=cubicc): pruning.schedule=cubicc is not a choice: did you mean"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_other_jobs_of_a_sweep_heed_is_printed_once(train):
    more = ("-m", "max_steps=2", "test=false", "checkpoint.interval_steps=1", "hydra.sweep.dir=sweep")
    done = train(*TINY, *more, "checkpoint/policy=[best],[interval]", "pruning.target=0.6,0.7").succeeded()
    assert done.out.count("checkpoint.interval_steps has no effect here") == 1


def test_a_resumed_run_is_held_only_to_what_is_typed_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_main(*TINY, "max_steps=4", "checkpoint.interval_steps=2", "hydra.run.dir=run").succeeded()
    run_main("resume=run", "max_steps=8", "checkpoint/policy=[best]").succeeded()
    err = run_main(
        "resume=run", "max_steps=9", "checkpoint/policy=[best]", "checkpoint.interval_steps=2"
    ).refusal()
    assert "checkpoint.interval_steps has no effect here" in err


def test_what_policies_wait_for_in_vain_is_a_warning(train):
    done = train(
        *TINY,
        "max_steps=4",
        "checkpoint.policy.sparsity.targets=[0.5,0.8,0.9]",
        "checkpoint.policy.early_stopping.patience=3",
    ).succeeded()
    lines = [line for line in done.out.splitlines() if line.startswith("checkpoint.policy")]
    assert lines == [
        "checkpoint.policy.sparsity.targets: 0.8, 0.9 cannot be reached with pruning.target=0.7.",
        "checkpoint.policy.early_stopping cannot stop this run: patience=3, and there are 3 evaluations.",
    ]


@pytest.mark.parametrize(("tolerance", "count"), [(0.05, 0), (0.03, 1)])
def test_a_target_that_is_within_its_window_can_be_reached(tolerance, count):
    key = "checkpoint.policy.sparsity"
    window = (f"{key}.targets=[0.74]", f"{key}.rule=window", f"{key}.tolerance={tolerance}")
    found = unheeded.doubts(checked(compose(*TINY, *window)), [f"{key}.targets"])
    assert len([line for line in found if line.startswith(f"{key}.targets: 0.74 cannot")]) == count


def test_a_key_of_another_choice_is_not_suggested_as_itself(train):
    done = train("optimizer=adamw", "optimizer.spike_threshold=9")
    assert done.err.startswith(
        "error: optimizer.spike_threshold is not a key of this configuration; there are: "
    )


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["data.image_size=8"], "lenet5 needs images of at least 12x12 pixels, and these are 8x8: enlarge"),
        (["data=digits"], "lenet5 needs images of at least 12x12 pixels, and these are 8x8: enlarge them"),
        (["data=image_folder", "data.image_size=11"], "lenet5 needs images of at least 12x12 pixels, and"),
        (["data=image_folder", "data.image_size=16", "data.cutout=17"], "data.cutout=17 is more than the 16"),
        (["data=cifar10", "data.cutout=33"], "data.cutout=33 is more than the 32 pixels of an image: lower"),
        (["data=mnist", "batch_size=60001"], "batch_size=60001 is more than the 60000 training images of"),
    ],
)
def test_what_is_known_of_images_before_they_are_read_is_looked_at_before(train, tmp_path, typed, sentence):
    base = ["model=lenet5", "data=npz", "device=cpu"]
    done = train(*base, *typed, *([] if "data=digits" in typed else ["data.root=nowhere"]))
    assert done.err.startswith(f"error: {sentence}"), done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
