"""One readable line out of what the configuration parser says."""

import pytest

from lightning_fold.commands.config_errors import summarise


def test_plain_sentence_is_left_alone():
    assert summarise("MLP(depth=3): expected 2") == "MLP(depth=3): expected 2"


def test_several_lines_become_one_and_each_is_said_once():
    message = "Does not validate against any of the Union subtypes\nSubtypes: [int]\n  - a b\n  - a b\nc\n"
    assert summarise(message) == "a b c"


@pytest.mark.parametrize(
    ("message", "kept", "dropped"),
    [
        ('Parser key "data": Parser key "init_args": wrong', ["data.init_args", "wrong"], ["Parser"]),
        (
            "Expected a <class 'torch.nn.Linear'>. Got value: 3",
            ["Linear", "found 3"],
            ["<class", "torch"],
        ),
        ("Expected a typing.Literal['a', 'b']. Got value: c", ["'a', 'b'", "found c"], ["typing"]),
        ("no. Got value: Namespace(a=1, b=2)", ["no"], ["Namespace", "a=1"]),
    ],
)
def test_words_of_the_parser_are_replaced(message, kept, dropped):
    text = summarise(message)
    assert all(word in text for word in kept) and not any(word in text for word in dropped)


@pytest.mark.parametrize(
    ("message", "close"),
    [
        ("Option 'max_epoch' is not accepted", "'max_epochs'"),
        ("Option 'trainer.callbaks' is not accepted", "'callbacks'"),
        ("Expected a dot import path string: AdamX", "'Adam'"),
        ("module 'lightning_fold.modules' has no attribute 'Classifer'", "'Classifier'"),
    ],
)
def test_closest_valid_name_is_added(message, close):
    import lightning_fold.modules  # noqa: F401  one of the modules that a message names

    assert close in summarise(message)


def test_name_that_is_close_to_none_gets_no_suggestion():
    text = summarise("Option 'qqqqqqqq' is not accepted")
    assert text == "Option 'qqqqqqqq' is not accepted"


def test_list_is_shown_as_it_is_written():
    assert '--skip "[a,b]"' in summarise('Parser key "skip": Expected a list. Got value: a,b')
    assert "--skip \"['*.norm',b]\"" in summarise('Parser key "skip": Expected a list. Got value: *.norm,b')
