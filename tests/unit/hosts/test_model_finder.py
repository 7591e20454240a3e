"""The model of a script that knows nothing of us is found, or it is said why not."""

from __future__ import annotations

import pytest
import torch

from asys_bench.hosts.model_finder import ModelFinder


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.body(x)


class Wrapper(Net):
    def __init__(self):
        super().__init__()
        self.inner = Net()

    def forward(self, x):
        return self.inner(x)


def needs_body(module):
    return (
        None if any(n == "body" for n, _ in module.named_modules()) else "match 'body' is not there"
    )


@pytest.fixture
def find():
    """Starts a finder; the list it returns gets (model, called) once."""
    finders = []

    def start(misfit=needs_body, **options):
        found = []
        finder = ModelFinder(misfit, lambda model, called: found.append((model, called)), **options)
        finder.start()
        finders.append(finder)
        return finder, found

    before = torch.nn.Module.train
    yield start
    for finder in finders:
        finder.stop()
        finder.stop()
    assert torch.nn.Module.train is before


def test_the_first_fitting_module_put_in_train_mode_is_it(find):
    _, found = find()
    loss, net = torch.nn.MSELoss(), Net()
    loss.train()
    net.eval()
    assert found == []
    assert net.train() is net
    assert found == [(net, False)]
    Net().train()
    assert len(found) == 1, "only the first"


def test_train_mode_is_set_as_ever(find):
    find(misfit=lambda _: "never")
    net = Wrapper()
    net.eval()
    assert not net.inner.body.training
    net.train()
    assert net.inner.body.training
    net.train(False)
    assert not net.training


def test_a_script_that_never_says_train_is_found_by_its_first_training_call(find):
    _, found = find()
    net = Net()
    with torch.no_grad():
        net(torch.ones(1, 4))
    assert found == [], "a warm-up without gradients is no training"
    other = Net()
    other(torch.ones(1, 4))
    assert found == [(other, True)]


def test_the_outermost_module_wins(find):
    _, found = find()
    net = Wrapper()
    net(torch.ones(1, 4))
    assert found == [(net, True)]


def test_a_class_name_is_enough_even_in_eval_mode(find):
    _, found = find(class_name="Net")
    wrapper = Wrapper().eval()
    with torch.no_grad():
        wrapper(torch.ones(1, 4))
    assert found == [(wrapper.inner, True)]


def test_a_qualified_class_name_is_a_class_name(find):
    _, found = find(class_name=f"{Net.__module__}.Net")
    net = Net()
    net.train()
    assert found == [(net, False)]


def test_a_call_back_chooses_a_part(find):
    _, found = find(choose=lambda module: getattr(module, "inner", None))
    Net().train()
    assert found == []
    net = Wrapper()
    net.train()
    assert found == [(net.inner, False)]


def test_it_explains_that_nothing_was_trained(find):
    finder, _ = find()
    assert "no module was put in train mode" in finder.explain()
    assert "model_class" in finder.explain()


def test_it_explains_what_was_seen_and_why_not(find):
    finder, found = find()
    for module in (torch.nn.MSELoss(), torch.nn.ReLU(), torch.nn.ReLU()):
        module.train()
    assert found == []
    text = finder.explain()
    assert "MSELoss: match 'body' is not there" in text
    assert text.count("ReLU") == 1
    assert "hooks[].match" in text
