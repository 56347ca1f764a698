"""The TRL that is installed is the one the trainer was written for, and any other is refused by the name of what moved."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import trl
from trl import GRPOTrainer

from navtoken.rlvr import trl_interface
from navtoken.rlvr.trainer import NavigationTrainer
from navtoken.rlvr.trl_interface import LINES, METHODS, InterfaceError, check_interface


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """What was found is kept; begin anew, and leave nothing behind."""
    check_interface.cache_clear()
    yield
    check_interface.cache_clear()


def test_the_installed_trl_is_known() -> None:
    check_interface()


@pytest.mark.parametrize("version", ["1.15.2", "1.17.0", "2.0.0", "0.29.1"])
def test_another_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(InterfaceError, match=rf"trl {version} is installed.*install trl>=1\.16,<1\.17"):
        check_interface()


def renamed(name: str) -> Any:
    """The method with its first parameter called something else."""
    method = getattr(GRPOTrainer, name)
    parameters = list(inspect.signature(method).parameters.values())
    parameters[1] = parameters[1].replace(name="elsewhere")

    def moved(self: Any, *args: Any, **kwargs: Any) -> Any: ...

    moved.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return moved


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_takes_something_else_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, name, renamed(name))
    with pytest.raises(InterfaceError, match=rf"GRPOTrainer.{name} takes \('elsewhere'.*install trl"):
        check_interface()


def test_a_method_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GRPOTrainer, "get_high_entropy_mask")
    with pytest.raises(InterfaceError, match=r"get_high_entropy_mask takes \(\) instead of"):
        check_interface()


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in LINES.items() for line in lines])
def test_a_line_that_is_gone_is_refused(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = inspect.getsource

    def without(thing: Any) -> str:
        source = real(thing)
        return source.replace(line, "...") if thing is getattr(GRPOTrainer, name) else source

    monkeypatch.setattr(trl_interface.inspect, "getsource", without)
    with pytest.raises(InterfaceError) as refused:
        check_interface()
    assert f"GRPOTrainer.{name} has no '{line}' any more" in str(refused.value)


def test_every_override_is_among_the_methods() -> None:
    """An override that is not looked after would one day not be called any more."""
    overridden = {
        name
        for name, value in vars(NavigationTrainer).items()
        if inspect.isfunction(value) and name in dir(GRPOTrainer) and name != "__init__"
    }
    assert overridden <= set(METHODS)


def test_a_trainer_is_not_made_on_another_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(InterfaceError):
        NavigationTrainer(model=None, args=None, train_dataset=None, processing_class=None, outcome=None)  # type: ignore[arg-type]
