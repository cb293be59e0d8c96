"""XLNet's own memories: rows that overlap, what is remembered of them, and trainings that carry it."""

import numpy as np
import pytest
import torch
from reference import lanes_naive, permutation_naive
from stock_lms import fuzz
from stock_pretraining_models import WORDPIECES, WORDS, plain_sgd
from transformers import XLNetConfig, XLNetLMHeadModel
from two_processes import run_in_two_processes

from heirloom.objectives.documents import Documents
from heirloom.objectives.permutation import DataCollatorForPermutationLanguageModeling, PermutationTargets
from heirloom.objectives.permutation_lanes import PermutationLanes, pack_permutation_lanes
from heirloom.objectives.token_lanes import DataCollatorForTokenLanes, TokenLanes
from heirloom.training.recurrence import SegmentRecurrence, check_memories
from heirloom.training.stock_pretraining import StockPretrainingTrainer

CLS, SEP, FIRST, OTHER = 1, 2, 6, WORDS - 1  # ordinary ids begin at FIRST; no text has OTHER
LENGTH, REUSE = 16, 6
SIZES = {"vocab_size": WORDS, "d_model": 8, "n_layer": 3, "n_head": 2, "d_inner": 12, "dropout": 0.0}
MEMORIES = {"mem_len": 9, "reuse_len": REUSE, "use_mems_train": True}


def corpus(size: int, sentence: int = 4) -> Documents:
    """A text whose tokens are all different, as far as ids go, each a word of its own."""
    numbers = np.arange(size, dtype=np.int32)
    edges = np.append(np.arange(0, size, sentence), size)
    tokens = FIRST + numbers % (OTHER - FIRST)
    return Documents(tokens, edges, np.array([0, len(edges) - 1]), numbers)


def lanes_of(size: int = 48, lanes: int = 1, seed: int = 0, **more) -> PermutationLanes:
    return PermutationLanes(corpus(size, **more), LENGTH, REUSE, CLS, SEP, lanes, seed)


def collator(reuse: int | None = REUSE, num_predict: int = 5):
    targets = PermutationTargets(num_predict=num_predict, reuse_length=reuse)
    return DataCollatorForPermutationLanguageModeling(WORDPIECES, targets)


class RowByRow(DataCollatorForPermutationLanguageModeling):
    """Targets that do not depend on the other rows of a batch, to compare batches of different sizes."""

    def __call__(self, rows):
        parts = [super(RowByRow, self).__call__([row]) for row in rows]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def model_of(**changes) -> XLNetLMHeadModel:
    torch.manual_seed(1)
    return fuzz(XLNetLMHeadModel(XLNetConfig(**SIZES | MEMORIES | changes)))


def batches_of(lanes, collate=None) -> list[dict]:
    collate = collate or collator()
    steps = [[lanes[step * lanes.lanes + row] for row in range(lanes.lanes)] for step in range(lanes.steps)]
    return [collate(rows) for rows in steps]


def carried(model, batches, grad=False) -> list:
    """What the model says of each batch with the memories of those before."""
    recurrence, found = SegmentRecurrence("mems"), []
    with torch.set_grad_enabled(grad):
        for batch in batches:
            found.append(model(**recurrence.feed(batch)))
            recurrence.keep(found[-1])
    return found


# Rows


@pytest.mark.parametrize(
    ("size", "length", "reuse", "lanes"),
    [
        (48, 16, 6, 1),
        (48, 16, 6, 2),
        (95, 16, 6, 3),
        (97, 16, 3, 5),
        (60, 30, 25, 2),
        (13, 16, 6, 1),
        (9, 20, 4, 2),
    ],
)
def test_rows_overlap_as_in_the_original(size, length, reuse, lanes):
    data = PermutationLanes(corpus(size), length, reuse, CLS, SEP, lanes)
    expected = lanes_naive.reused_rows(size, length, reuse, lanes)
    assert len(data) == lanes * data.steps
    assert [len(rows) for rows in expected] == [data.steps] * lanes
    read, tokens = set(), corpus(size).tokens
    for lane, rows in enumerate(expected):
        for step, (first, new) in enumerate(rows):
            row = data[step * lanes + lane]
            ids, words, types = row["input_ids"], row["word_ids"], row["token_type_ids"]
            assert np.array_equal(ids[: len(first)], tokens[first])
            assert np.array_equal(words[: len(first)], first)
            assert np.array_equal(words < 0, ids < FIRST)
            marks = np.flatnonzero(ids < FIRST)
            assert ids[marks].tolist() == [SEP] * (len(marks) - 1) + [CLS]
            kinds = [0, 1, 2] if len(marks) == 3 else [0, 2]
            assert types.tolist() == np.repeat(kinds, np.diff([-1, *marks])).tolist()
            a = words[len(first) : marks[0]]
            assert a.tolist() == new[: len(a)]
            if len(new) >= 2:
                assert len(marks) == 3
                b = words[marks[0] + 1 : marks[1]]
                assert len(a) + len(b) == len(new)
                assert len(a) > 0
                assert np.array_equal(b, np.arange(b[0], b[0] + len(b)))
                if b.tolist() != new[len(a) :]:
                    assert b[0] % 4 == 0  # a sentence
                    assert b[-1] < rows[0][0][0] or b[0] > new[-1]
            else:
                assert len(marks) == 2
            if step < data.steps - 1:
                assert len(ids) == length
                assert len(first) == reuse
            read |= {*first, *new}
    assert read == set(range(size))


def test_no_text_stands_twice_in_a_row():
    for seed in range(20):
        for row in lanes_of(48, seed=seed):
            words = row["word_ids"][row["word_ids"] >= 0].tolist()
            assert len(set(words)) == len(words)


def test_half_of_the_second_texts_follow():
    data = lanes_of(4000, lanes=40)
    follows, cuts = [], []
    for number in range(len(data)):
        words = data[number]["word_ids"]
        marks = np.flatnonzero(words < 0)
        if len(words) == LENGTH:
            follows.append(words[marks[0] + 1] == words[marks[0] - 1] + 1)
            cuts.append((words[marks[0] - 1] + 1) % 4 == 0)
    assert len(follows) == 600
    assert np.mean(follows) == pytest.approx(0.5, abs=0.06)
    assert all(cuts)  # between sentences, since each row has such a place
    long = lanes_of(4000, lanes=40, sentence=100)
    words = long[5]["word_ids"]
    assert np.flatnonzero(words < 0).tolist() == [9, 14, 15]  # else in the middle


def test_rows_are_a_function_of_seed_epoch_and_index():
    def ids(data):
        return np.concatenate([row["input_ids"] for row in data])

    data = lanes_of(96, lanes=2)
    assert np.array_equal(ids(data), ids(lanes_of(96, lanes=2)))
    assert not np.array_equal(ids(data), ids(lanes_of(96, lanes=2, seed=1)))
    first = ids(data)
    data.set_epoch(1)
    assert not np.array_equal(ids(data), first)
    assert np.array_equal(ids(lanes_of(96).spread(2)), first)
    again = lanes_of(96)
    again.set_epoch(1)
    assert np.array_equal(ids(again.spread(2)), ids(data))
    assert data.identity() == {"tokens": 96, "lanes": 2, "length": 16, "reuse_length": 6, "seed": 0}
    assert data.spread(2) is data


def test_documents_end_with_a_separator():
    documents = [
        [{"input_ids": [7, 8, 9], "word_ids": [0, 0, 1]}],
        [{"input_ids": [10, 11], "word_ids": [0, 1]}],
    ]
    words = WORDPIECES
    with pytest.raises(ValueError, match="needs the token eos"):
        pack_permutation_lanes(documents, 12, 4, words)
    words = type(words)(
        tokenizer_object=words.backend_tokenizer, cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
    )
    row = pack_permutation_lanes(documents, 12, 6, words)[0]
    assert row["input_ids"].tolist() == [7, 8, 9, SEP, 10, 11, SEP, SEP, CLS]
    assert row["word_ids"].tolist() == [0, 0, 1, -1, 2, 3, -1, -1, -1]
    words.add_tokens("<eod>")
    row = pack_permutation_lanes(documents, 12, 6, words)[0]
    assert row["input_ids"].tolist() == [7, 8, 9, WORDS, 10, 11, WORDS, SEP, CLS]


# Memories


@pytest.mark.parametrize("memory", [100, 9, 4])
def test_memories_are_those_of_a_single_pass(memory):
    """Over the first parts alone, in one piece, each of them seeing no farther than its memory."""
    model, lanes = model_of(mem_len=memory), lanes_of(96, lanes=2)
    batches = batches_of(lanes)
    batches = batches[: len(batches) - 1]  # the last first parts may be shorter
    found = carried(model, batches)
    ids = torch.cat([batch["input_ids"][:, :REUSE] for batch in batches], 1)
    assert torch.equal(ids[0], torch.from_numpy(corpus(96).tokens[: ids.shape[1]]).long())
    masks = [
        permutation_naive.single_pass([batch["perm_mask"][row] for batch in batches], REUSE, memory)
        for row in (0, 1)
    ]
    mapping = torch.zeros(2, 5 * len(batches), ids.shape[1])
    for step, batch in enumerate(batches):
        mapping[:, step * 5 : step * 5 + 5, step * REUSE : step * REUSE + REUSE] = batch["target_mapping"][
            :, :, :REUSE
        ]
    whole = {
        "input_ids": ids,
        "perm_mask": torch.tensor(masks).float(),
        "token_type_ids": torch.zeros_like(ids),
    }
    with torch.no_grad():
        states = model(**whole, output_hidden_states=True).hidden_states
        logits = model(**whole, target_mapping=mapping).logits.unflatten(1, (len(batches), 5))
    assert len(batches) > 5
    for step, outputs in enumerate(found):
        end = (step + 1) * REUSE
        for memories, layer in zip(outputs.mems, states, strict=False):
            expected = layer[:, max(0, end - memory) : end].transpose(0, 1)
            torch.testing.assert_close(memories, expected, rtol=0, atol=1e-5)
        first = batches[step]["target_mapping"][:, :, :REUSE].any(-1)
        assert first.any()
        torch.testing.assert_close(outputs.logits[first], logits[:, step][first], rtol=0, atol=1e-5)


def dependence(model, batches, size: int) -> list[np.ndarray]:
    """For each batch of one row (P, size): whether another token at a place of the text changes a target's logits."""
    many = []
    for batch in batches:  # a copy for each token of the text, and one as it is
        many.append({name: value.repeat(size + 1, *[1] * (value.dim() - 1)) for name, value in batch.items()})
        for copy, token in zip(many[-1]["input_ids"], corpus(size).tokens.tolist(), strict=False):
            copy[copy == token] = OTHER
    found = []
    for outputs in carried(model, many):
        change = (outputs.logits[:-1] - outputs.logits[-1]).abs().amax(-1).T.numpy()
        assert not ((change > 2e-6) & (change < 1e-5)).any()  # rounding and effects are far apart
        found.append(change > 1e-5)
    return found


def test_no_target_depends_on_itself_or_on_a_later_one():
    """Each token of the text is changed wherever it is read: in rows before, in memories and in the row itself."""
    size, remembered, told = 44, 0, 0
    for seed in range(3):
        data = lanes_of(size, seed=seed)
        batches, model = batches_of(data), model_of(mem_len=100)
        words = [row["word_ids"].tolist() for row in data]
        found = dependence(model, batches, size)
        for step, batch in enumerate(batches):
            places = batch["target_mapping"][0].argmax(1).tolist()
            special = {place for place, word in enumerate(words[step]) if word < 0}
            inside = sorted({*places, *special})
            perm = batch["perm_mask"][0].numpy()
            rank = [
                sum(not perm[i, j] for j in inside if (j < REUSE) == (i < REUSE) and i != j)
                for i in range(len(perm))
            ]
            for slot, query in enumerate(places):
                expected = [word < step * REUSE for word in range(size)]  # all that was reused before
                for key, word in enumerate(words[step]):
                    if word >= 0:
                        assert not expected[word]
                        expected[word] = permutation_naive.knows(
                            query, key, rank, set(places), special, REUSE
                        )
                assert found[step][slot].tolist() == expected
                assert not found[step][slot, words[step][query]]
                told += 1
                remembered += int(found[step][slot, : step * REUSE].sum())
    assert told > 60
    assert remembered > 500


def test_a_model_that_remembers_whole_rows_would_see_the_answers():
    """The test above finds it, and the trainer refuses it."""
    size, data = 44, lanes_of(44)
    batches = batches_of(data)
    found = dependence(model_of(mem_len=100, reuse_len=None), batches[:2], size)
    places = batches[1]["target_mapping"][0].argmax(1).tolist()
    own = [data[1]["word_ids"][place] for place in places]
    assert any(found[1][slot, word] for slot, word in enumerate(own) if word >= 0)


# Training


def trainer_of(folder, model=None, rows=2, **more) -> StockPretrainingTrainer:
    own = {"train_dataset": lanes_of(72), "data_collator": RowByRow(WORDPIECES, collator().targets)}
    own |= {key: more.pop(key) for key in (*own, "eval_dataset") if key in more}
    return StockPretrainingTrainer(model or model_of(), plain_sgd(folder, rows, **more), **own)


def losses(trainer, name="loss") -> list[float]:
    return [record[name] for record in trainer.state.log_history if name in record]


def weights(trainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.state_dict().values()]


def test_training_carries_memories_and_evaluation_has_its_own(tmp_path):
    held_out = lanes_of(50, seed=3)
    trainer = trainer_of(
        tmp_path, num_train_epochs=2, eval_dataset=held_out, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    expected, collate, data = [], trainer.data_collator, lanes_of(72, lanes=2)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        collate.set_epoch(epoch)
        expected += [
            outputs.loss.item() for outputs in carried(trainer.model.train(), batches_of(data, collate))
        ]
    assert losses(trainer) == pytest.approx(expected, abs=1e-5)
    assert len(expected) == 2 * data.steps > 8
    alone = [trainer.model(**batch).loss.item() for batch in batches_of(data, collate)]
    assert expected[data.steps + 1 :] != pytest.approx(alone[1:], abs=1e-3)
    collate.set_epoch(0)
    batches = batches_of(held_out.spread(2), collate)
    found = carried(trainer.model.eval(), batches)
    count = [int((batch["labels"] >= 0).sum()) for batch in batches]
    total = sum(outputs.loss.item() * n for outputs, n in zip(found, count, strict=True)) / sum(count)
    assert losses(trainer, "eval_loss") == pytest.approx(
        [total] * len(losses(trainer, "eval_loss")), abs=1e-5
    )
    assert trainer.predict(held_out).metrics["test_loss"] == pytest.approx(total, abs=1e-5)


def test_accumulated_gradients_are_those_of_one_mean(tmp_path):
    """Lanes of one row accumulated twice: memories go from each to the next, and the mean is over the targets of both."""
    data = lanes_of(40)
    assert data.steps == 6
    collate = RowByRow(WORDPIECES, collator(num_predict=12).targets)  # more than the last row has
    trainer = trainer_of(
        tmp_path,
        rows=1,
        train_dataset=data,
        data_collator=collate,
        gradient_accumulation_steps=6,
        learning_rate=1.0,
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    model, batches = model_of().train(), batches_of(data, collate)
    counts = [int((batch["labels"] >= 0).sum()) for batch in batches]
    assert len(set(counts)) > 1
    outputs = carried(model, batches, grad=True)
    loss = sum(found.loss * count for found, count in zip(outputs, counts, strict=True)) / sum(counts)
    loss.backward()
    trainer.train()
    assert losses(trainer) == pytest.approx([loss.item()], rel=1e-5)
    learned = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert len(learned) > 20
    gradient = torch.cat([parameter.grad.flatten() for parameter in learned])
    pairs = zip(before, trainer.model.parameters(), model.parameters(), strict=True)
    found = torch.cat([(old - new.detach()).flatten() for old, new, twin in pairs if twin.grad is not None])
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=2e-6)
    assert float(found @ gradient / (gradient @ gradient)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("step", [3, 7])
def test_a_resumed_training_remembers(step, tmp_path):
    more = {"learning_rate": 0.1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": step}
    more |= {"data_collator": collator()}
    whole = trainer_of(tmp_path, **more)
    whole.train()
    assert whole.state.global_step > 7
    again = trainer_of(tmp_path, model_of(), **more)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert losses(again) == pytest.approx(losses(whole), abs=1e-6)
    for ours, theirs in zip(weights(again), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    seeded = trainer_of(tmp_path, model_of(), **more | {"train_dataset": lanes_of(72, seed=1)})
    with pytest.raises(ValueError, match="changed seed 0 to 1.*Resume with the same data, seed"):
        seeded.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_lanes(tmp_path):
    code = """
trainer = suite.in_company(folder / "two", 2, ddp_backend="gloo")
trainer.train()
if trainer.args.process_index == 0:
    evaluated = [suite.losses(trainer), suite.losses(trainer, "eval_loss"), suite.weights(trainer)]
    torch.save(evaluated, folder / "result")
"""
    run_in_two_processes(__file__, tmp_path, code)
    ours = torch.load(tmp_path / "result", weights_only=False)
    one = in_company(tmp_path / "one", 4)
    one.train()
    assert len(ours[0]) == len(ours[1]) == 4
    assert ours[0] == pytest.approx(losses(one), abs=1e-5)
    assert ours[1] == pytest.approx(losses(one, "eval_loss"), abs=1e-5)
    for two, whole in zip(ours[2], weights(one), strict=True):
        torch.testing.assert_close(two, whole, rtol=0, atol=1e-5)


def in_company(folder, rows: int, **more) -> StockPretrainingTrainer:
    """Four lanes, of all processes together, which are equally long, so that no row is filled up."""
    sets = {"train_dataset": lanes_of(4 * 25), "eval_dataset": lanes_of(4 * 14, seed=2)}
    more |= {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
    }
    return trainer_of(folder, rows=rows, learning_rate=0.05, **sets, **more)


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_type": "uni"}, "sees both sides.*attn_type='uni' instead of 'bi'"),
        ({"use_mems_train": False}, "use_mems_train=False instead of True.*read when a model is made"),
        ({"mem_len": None}, "mem_len=None instead of a number of tokens to keep"),
        (
            {"reuse_len": 5},
            "reuse_len=5, which would keep the wrong tokens, instead of 6.*--mem_len and --reuse_len",
        ),
        ({"reuse_len": None}, "reuse_len=None, which would keep the wrong tokens"),
        ({"bi_data": True}, "bi_data=True instead of False"),
    ],
)
def test_models_that_would_remember_something_else(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model_of(**changes))


def test_what_else_is_refused(tmp_path):
    late = model_of(reuse_len=None)
    late.config.reuse_len = REUSE
    with pytest.raises(
        ValueError, match=r"after the model was made: reuse_len=6 \(made with None\).*reads these"
    ):
        trainer_of(tmp_path, late)
    for reuse in (None, 5, 0):
        with pytest.raises(
            ValueError, match=f"reuse_length={reuse}, but 6 tokens of each row become memory.*told later"
        ):
            trainer_of(tmp_path, data_collator=collator(reuse))
    plain = {"train_dataset": TokenLanes(corpus(40).tokens, 5)}
    with pytest.raises(ValueError, match="RowByRow does not fit these lanes: PermutationLanes"):
        trainer_of(tmp_path, model_of(attn_type="uni", reuse_len=None), **plain)
    with pytest.raises(ValueError, match="ForTokenLanes does not fit these lanes: PermutationLanes go with"):
        trainer_of(tmp_path, data_collator=DataCollatorForTokenLanes(WORDPIECES))
    with pytest.raises(ValueError, match="ForTokenLanes does not fit|reuse_length=5, but 6"):
        trainer_of(
            tmp_path, data_collator=collator(5), train_dataset=None, eval_dataset=lanes_of()
        ).evaluate()
    with pytest.raises(ValueError, match="attn_type='bi', which keeps memories, but the model is bert"):
        check_memories(type("Config", (), {"model_type": "bert"}), 6)
    for reuse in (0, 12):
        with pytest.raises(
            ValueError, match=f"reuse_len is {reuse}; expected 1 to 11, since rows of 16 tokens"
        ):
            PermutationLanes(corpus(48), 16, reuse, CLS, SEP)
    with pytest.raises(ValueError, match="15 tokens do not fill 4 lanes of four or more.*smaller batch size"):
        PermutationLanes(corpus(15), 16, 6, CLS, SEP, 4)
    with pytest.raises(IndexError, match="expected a row of 0 to"):
        lanes_of()[999]
