"""Networks from files: published state dicts of every shape, and files that hold no weights."""

import hashlib
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from networks import MLP, Facts, WideResNet
from networks.checkpoint import file_hash, load_network

FACTS = Facts(classes=7, channels=1, size=8, mean=(0.3,), std=(0.4,))
wrn = partial(WideResNet, depth=10, width=1)
mlp = partial(MLP, widths=(4,))


@pytest.fixture
def network() -> nn.Module:
    network = wrn(FACTS)
    with torch.no_grad():
        network(torch.rand(8, *FACTS.shape))  # batch-norm that has seen something
    return network.eval()


def save(content, folder: Path) -> Path:
    torch.save(content, folder / "file.pt")
    return folder / "file.pt"


def same(loaded, network) -> bool:
    x = torch.rand(3, *FACTS.shape)
    return torch.equal(loaded.network(x), network(x))


def test_a_plain_state_dict(network, tmp_path):
    path = save(network.state_dict(), tmp_path)
    loaded = load_network(path, wrn, FACTS)
    assert same(loaded, network)
    assert not any(module.training for module in loaded.network.modules())
    assert loaded.facts is None
    assert loaded.trained_at == 1.0
    assert loaded.sha256 == file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_nested_state_dict_and_data_parallels_prefix(network, tmp_path, key, prefix):
    weights = OrderedDict((prefix + name, value) for name, value in network.state_dict().items())
    assert same(load_network(save(weights, tmp_path), wrn, FACTS), network)
    assert same(load_network(save({key: weights, "epoch": 76, "acc": 0.85}, tmp_path), wrn, FACTS), network)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_unused_block_of_tradess_network(network, tmp_path, prefix):
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    weights |= {
        prefix + name.replace("block1.", "sub_block1."): value.clone()
        for name, value in network.state_dict().items()
        if name.startswith("block1.")
    }
    assert len(weights) > len(network.state_dict())
    assert same(load_network(save(weights, tmp_path), wrn, FACTS), network)


def without(weights, key):
    return {name: value for name, value in weights.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "fc.weight"), "1 missing, 0 unknown, 0 of another shape, the first being fc.weight"),
        (lambda w: w | {"head.weight": torch.zeros(2)}, "0 missing, 1 unknown, 0 .*, the first being head.weight"),
        (
            lambda w: w | {"fc.weight": torch.zeros(10, 64)},
            r"0 missing, 0 unknown, 1 of .*fc.weight \(10, 64\) for \(7, 64\)",
        ),
        (lambda w: {f"backbone.{key}": value for key, value in w.items()}, r"do not fit WideResNet: (\d+) missing, \1"),
        (lambda w: {}, "holds no weights"),
    ],
    ids=["missing", "unknown", "shape", "prefix", "empty"],
)
def test_weights_that_do_not_fit(network, tmp_path, change, message):
    path = save(change(dict(network.state_dict())), tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(path, wrn, FACTS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_entry_that_is_no_tensor(network, tmp_path):
    path = save(dict(network.state_dict()) | {"fc.weight": [[1.0, 2.0]]}, tmp_path)
    with pytest.raises(ValueError, match=r"fc\.weight"):
        load_network(path, wrn, FACTS)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*nowhere\.pt"):
        load_network(tmp_path / "nowhere.pt", wrn, FACTS)
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path, wrn, FACTS)


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_code_in_a_file_is_run(tmp_path):
    path = save({"fc.weight": Evil(tmp_path / "touched")}, tmp_path)
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        load_network(path, wrn, FACTS)
    assert not (tmp_path / "touched").exists()


def whole_module(path):
    torch.save(nn.Linear(2, 2), path)


def truncated(path):
    torch.save(wrn(FACTS).state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    "write",
    [
        whole_module,
        truncated,
        lambda path: path.write_bytes(pickle.dumps({"a": print})),
        lambda path: path.write_bytes(pickle.dumps(Facts)),
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
        lambda path: path.write_text("<html>\nrate limited\n</html>\n"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["module", "truncated", "pickled function", "pickled class", "picture", "web page", "empty"],
)
def test_a_file_that_holds_no_weights(tmp_path, write):
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(ValueError, match=r"file\.pt cannot be read as weights alone .*torch\.save") as caught:
        load_network(path, wrn, FACTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 5, "text"], ids=repr)
def test_a_file_that_is_no_dictionary(tmp_path, content):
    with pytest.raises(ValueError, match=f"holds a {type(content).__name__}, expected a checkpoint or a state dict"):
        load_network(save(content, tmp_path), wrn, FACTS)


@pytest.mark.parametrize(("network_given", "facts"), [(None, FACTS), (None, None), (wrn, None)])
def test_a_plain_state_dict_needs_its_architecture(network, tmp_path, network_given, facts):
    path = save(network.state_dict(), tmp_path)
    with pytest.raises(ValueError, match=r"does not say which architecture .*class_path: networks\.WideResNet"):
        load_network(path, network_given, facts)


def run(network: nn.Module, spec: object, **more: object) -> dict[str, object]:
    """What a run's checkpoint holds."""
    return {
        "state_dict": {f"network.{key}": value for key, value in network.state_dict().items()},
        "hyper_parameters": {"network": spec, "facts": FACTS.to_dict(), "temperature": 20.0},
        "trained_at": 20.0,
        **more,
    }


def test_a_runs_checkpoint_says_everything(network, tmp_path):
    spec = {"class_path": "networks.WideResNet", "init_args": {"depth": 10, "width": 1}}
    path = save(run(network, spec), tmp_path)
    loaded = load_network(path)
    assert same(loaded, network)
    assert loaded.trained_at == 20.0
    assert loaded.facts.to_dict() == FACTS.to_dict()
    # The file knows its data better than whoever asks.
    assert load_network(path, facts=Facts(10, 3, 32, [0.5] * 3, [0.5] * 3)).facts.classes == 7


def test_a_runs_checkpoint_with_an_architecture_of_no_arguments(tmp_path):
    network = MLP(FACTS).eval()
    assert same(load_network(save(run(network, {"class_path": "networks.MLP"}), tmp_path)), network)


def test_what_else_a_run_keeps_is_passed_over(tmp_path):
    network = mlp(FACTS).eval()
    content = run(network, None, teacher={"sha256": "0"}, delta=torch.zeros(3))
    content["state_dict"]["val_accuracy.tp"] = torch.zeros(7)
    loaded = load_network(save(content, tmp_path), mlp)
    assert same(loaded, network)
    with pytest.raises(ValueError, match="does not say which architecture"):
        load_network(tmp_path / "file.pt")


@pytest.mark.parametrize("spec", ["wrn_34_10", {"class_path": "elsewhere.Network"}, {"class_path": "networks.Gone"}])
def test_a_checkpoint_that_names_no_network_of_ours(network, tmp_path, spec):
    """Another project's Lightning checkpoint, or one whose class has been renamed since."""
    path = save(run(network, spec), tmp_path)
    assert same(load_network(path, wrn), network)
    with pytest.raises(ValueError, match=r"file\.pt"):
        load_network(path)


def test_another_projects_checkpoint(network, tmp_path):
    content = {"state_dict": dict(network.state_dict()), "hyper_parameters": {"lr": 0.1}, "epoch": 3}
    assert same(load_network(save(content, tmp_path), wrn, FACTS), network)


def test_weights_of_another_precision_and_device_come_to_float32_on_the_cpu(network, tmp_path):
    path = save({key: value.half() for key, value in network.state_dict().items()}, tmp_path)
    loaded = load_network(path, wrn, FACTS)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    assert {p.device.type for p in loaded.network.parameters()} == {"cpu"}
