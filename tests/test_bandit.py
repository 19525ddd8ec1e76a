from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain import (
    BlastRadius,
    Entity,
    Evidence,
    Feedback,
    FeedbackSource,
    Incident,
    IncidentKind,
    ModelError,
    RemedyCard,
    Safety,
    Share,
)
from ranking import features, reward
from ranking.bandit import ARGUMENTS, PRIOR_PASSES, Bandit, Lesson

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SLOW, FAILING, DELETIONS = IncidentKind.SLOW_TRANSFERS, IncidentKind.FAILING_TRANSFERS, IncidentKind.FAILING_DELETIONS
ALL = frozenset(IncidentKind)
ADDRESSES = {
    "wait": (ALL, 0.3),
    "switch-source": (frozenset({SLOW, FAILING, IncidentKind.STALLED_TRANSFERS}), 0.6),
    "throttle-link": (frozenset({SLOW, FAILING}), 0.35),
    "boost-rule": (frozenset({SLOW, IncidentKind.STALLED_TRANSFERS}), 0.45),
    "open-ticket": (ALL, 0.5),
    "exclude-storage": (frozenset({FAILING, DELETIONS}), 0.25),
}
CLASSES = ("transfer-timeout", "source-connection", "destination-space", "source-missing")


def card(name: str, addresses: frozenset[IncidentKind], prior: float) -> RemedyCard:
    return RemedyCard(
        name=name,
        title=name,
        spec=f"somewhere:{name}",
        builtin=True,
        addresses=addresses,
        safety=Safety.REVERSIBLE,
        blast_radius=BlastRadius.LINK,
        cooldown=timedelta(minutes=10),
        settle_time=timedelta(minutes=10),
        prior=prior,
    )


CARDS = {name: card(name, kinds, prior) for name, (kinds, prior) in ADDRESSES.items()}


def slate(kind: IncidentKind) -> list[str]:
    return [name for name, remedy in CARDS.items() if kind in remedy.addresses]


def context(kind: IncidentKind, seed: int) -> dict[str, float | str]:
    pick = random.Random(seed)
    numbers = ("confidence", "severity", "anomalous", "background", "size", "links", "open")
    return {
        "kind": str(kind),
        "culprit": pick.choice(("rse", "link", "fts")),
        "role": pick.choice(("source", "destination", "both")),
        "network": pick.choice(("unknown", "clean", "lossy")),
        **{name: round(pick.random(), 4) for name in numbers},
        **{f"error.{name}": round(pick.random(), 4) for name in pick.sample(CLASSES, 2)},
    }


class Teacher:
    """Writes feedback rows as the ledger numbers them."""

    def __init__(self) -> None:
        self.row = 0

    def say(
        self,
        value: str,
        remedy: str,
        kind: IncidentKind = SLOW,
        *,
        seed: int | None = None,
        propensity: float | None = None,
        source: FeedbackSource = FeedbackSource.RATING,
        by: str = "ada",
    ) -> Lesson:
        self.row += 1
        offered = slate(kind)
        feedback = Feedback(
            row=self.row,
            at=NOW,
            decision_id=f"decision-{self.row}",
            option=offered.index(remedy),
            source=source,
            value=value,
            by=by,
            propensity=propensity,
        )
        return Lesson(
            feedback=feedback,
            context=context(kind, self.row if seed is None else seed),
            options=tuple((name, 1 / len(offered)) for name in offered),
        )


@pytest.fixture
def teacher():
    return Teacher()


@pytest.fixture
def bandit():
    with Bandit(CARDS) as fresh:
        yield fresh


def costs(bandit: Bandit, kind: IncidentKind = SLOW, seed: int = 0) -> dict[str, float]:
    ranking = bandit.rank(context(kind, seed), slate(kind))
    return dict(zip(ranking.remedies, ranking.expected_costs, strict=True))


def best(bandit: Bandit, kind: IncidentKind = SLOW, seed: int = 0) -> str:
    ranking = bandit.rank(context(kind, seed), slate(kind))
    return ranking.remedies[ranking.best]


def mixed(teacher: Teacher, n: int) -> list[Lesson]:
    pick = random.Random(7)
    values = {
        FeedbackSource.RATING: ("good", "wrong", "not-applicable"),
        FeedbackSource.CHOICE: ("chosen", "rejected"),
        FeedbackSource.OUTCOME: ("fixed", "unchanged", "worse", "unknown"),
    }
    lessons = []
    for _ in range(n):
        kind = pick.choice(list(IncidentKind))
        source = pick.choice(list(values))
        propensity = pick.choice((None, 0.9, 0.01))
        lesson = teacher.say(
            pick.choice(values[source]), pick.choice(slate(kind)), kind, source=source, propensity=propensity
        )
        lessons.append(lesson)
    return lessons


class TestContext:
    def incident(self, **changes: object) -> Incident:
        evidence = Evidence(
            summary="",
            window_s=1800.0,
            anomalous=30,
            total=40,
            background=0.01,
            as_source=Share(anomalous=29, total=35),
            as_destination=Share(anomalous=1, total=5),
            links={"A>B": 20, "A>C": 10},
            reasons={"source-timeout": 6, "source-connection": 2},
            network={"loss": 0.02, "delay_ms": 40.0, "throughput_bps": 2e9},
        )
        fields: dict[str, object] = {
            "id": "i",
            "kind": FAILING,
            "culprit": Entity.parse("rse:A"),
            "opened_at": NOW - timedelta(hours=2),
            "updated_at": NOW,
            "anomalous": 300,
            "confidence": 0.9,
            "severity": 0.4,
            "evidence": evidence,
        }
        return Incident(**(fields | changes))

    def test_says_what_is_known_and_nothing_else(self):
        seen = features.context(self.incident(), NOW)
        assert json.loads(json.dumps(seen)) == seen
        assert {name: value for name, value in seen.items() if isinstance(value, str)} == {
            "kind": "failing-transfers",
            "culprit": "rse",
            "role": "source",
            "network": "lossy",
        }
        assert seen["confidence"] == 0.9
        assert seen["anomalous"] == 0.75
        assert seen["error.source-timeout"] == 0.75
        assert all(0 <= value <= 1 for value in seen.values() if not isinstance(value, str))

    def test_an_empty_incident_has_a_context_too(self, bandit):
        nothing = Evidence(summary="", window_s=60.0, anomalous=0, total=0, background=math.nan)
        seen = features.context(self.incident(evidence=nothing, culprit=Entity.parse("feed:events")), NOW)
        assert seen["role"] == "none"
        assert seen["network"] == "unknown"
        assert "anomalous" not in seen
        assert "background" not in seen
        bandit.rank(seen, ["wait"])

    def test_time_passes_and_does_not_run_backwards(self):
        late = features.context(self.incident(), NOW + timedelta(days=30))
        soon = features.context(self.incident(), NOW - timedelta(days=1))
        assert late["open"] == 1.0
        assert soon["open"] == 0.0
        with pytest.raises(ValueError, match="no time zone"):
            features.context(self.incident(), NOW.replace(tzinfo=None))

    def test_few_classes_of_error_whatever_an_event_says(self, bandit):
        reasons = {"x" * 10_000 + " |action :\n": 5} | {f"class-{n}": 1 for n in range(100)}
        evidence = Evidence(summary="", window_s=60.0, anomalous=5, total=5, background=0.0, reasons=reasons)
        seen = features.context(self.incident(evidence=evidence), NOW)
        assert sum(name.startswith("error.") for name in seen) == features.MAX_CLASSES
        bandit.rank(seen, slate(FAILING))


HOSTILE = st.text(alphabet=st.one_of(st.sampled_from("|: \n\r\t=%'\"é\x00"), st.characters()), max_size=30)
VALUES = st.one_of(HOSTILE, st.floats(0.0, 1.0), st.integers(0, 1))


class TestExample:
    @given(st.dictionaries(HOSTILE, VALUES, max_size=8), st.lists(HOSTILE, min_size=1, max_size=4))
    def test_no_text_breaks_the_format(self, seen, remedies):
        shared, *actions = features.example(seen, remedies)
        assert "\n" not in "".join([shared, *actions])
        assert shared.startswith("shared |context ")
        assert shared.count("|") == 1
        assert len(shared.split()) == 2 + len(seen)
        assert all(token.count(":") == 1 for token in shared.split()[2:])
        assert len(actions) == len(remedies)
        assert all(action.count("|") == 1 and len(action.split()) == 2 for action in actions)

    @given(st.dictionaries(HOSTILE, VALUES, max_size=8), HOSTILE, VALUES)
    def test_no_text_alters_another_feature(self, seen, name, value):
        others = {other: held for other, held in seen.items() if other != name}
        alone = features.example(others, ["r"])[0].split()
        together = features.example(others | {name: value}, ["r"])[0].split()
        assert [token for token in together if token in set(alone)] == alone
        names = [token.rpartition(":")[0] for token in together[2:]]
        assert len(set(names)) == len(names)

    @settings(max_examples=50, deadline=None)
    @given(HOSTILE, HOSTILE)
    def test_vowpal_wabbit_reads_as_many_features_as_there_are(self, name, value):
        import vowpalwabbit  # noqa: PLC0415  (by the library itself, without ours)

        workspace = vowpalwabbit.Workspace("--cb_explore_adf --noconstant --quiet")
        parsed = workspace.parse(features.example({name: value, f"{name}.": 0.5}, [value, name]))
        try:
            # The two of the shared line are counted with each action.
            assert [action.get_feature_number() for action in parsed[1:]] == [1, 1]
            assert parsed[0].get_feature_number() == 2
            assert len(parsed) == 3
        finally:
            workspace.finish_example(parsed)
            workspace.finish()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, None, True, [1]])
    def test_what_is_no_word_and_no_share_is_refused(self, bandit, value):
        with pytest.raises(ValueError, match=r"'severity' = .*words and numbers from 0 to 1"):
            bandit.rank({"kind": "x", "severity": value}, ["wait"])

    @pytest.mark.parametrize("label", [(math.nan, 1.0), (0.5, 0.0), (0.5, math.nan), (-1.0, 1.0), (2.0, 1.0)])
    def test_what_cannot_be_learned_from_is_refused(self, label):
        with pytest.raises(ValueError, match="not one to learn from"):
            features.example({}, ["wait"], label)


class TestRank:
    @pytest.mark.parametrize("kind", list(IncidentKind))
    def test_the_first_ranking_is_the_authors(self, bandit, kind):
        ranking = bandit.rank(context(kind, 3), slate(kind))
        for remedy, cost in zip(ranking.remedies, ranking.expected_costs, strict=True):
            assert cost == pytest.approx(1 - CARDS[remedy].prior, abs=0.01)
        order = sorted(slate(kind), key=lambda name: -CARDS[name].prior)
        by_probability = sorted(zip(ranking.probabilities, ranking.remedies, strict=True), key=lambda pair: -pair[0])
        assert [name for _, name in by_probability] == order

    def test_probabilities_are_over_the_slate(self, bandit, teacher):
        bandit.learn(mixed(teacher, 200))
        for kind in IncidentKind:
            for size in range(1, len(slate(kind)) + 1):
                ranking = bandit.rank(context(kind, size), slate(kind)[:size])
                assert len(ranking.probabilities) == len(ranking.expected_costs) == size
                assert sum(ranking.probabilities) == pytest.approx(1.0, abs=1e-12)
                assert all(probability > 0 for probability in ranking.probabilities)
                assert all(0 <= cost <= 1 for cost in ranking.expected_costs)

    def test_the_order_of_the_slate_does_not_matter(self, bandit, teacher):
        bandit.learn(mixed(teacher, 100))
        one = bandit.rank(context(SLOW, 1), slate(SLOW))
        other = bandit.rank(context(SLOW, 1), slate(SLOW)[::-1])
        assert one.probabilities == other.probabilities[::-1]
        assert one.expected_costs == other.expected_costs[::-1]
        assert one.remedies[one.best] == other.remedies[other.best]

    def test_the_probabilities_are_squarecbs_of_the_costs(self, bandit, teacher):
        lessons = [teacher.say("good", "boost-rule") for _ in range(3)]
        bandit.learn(lessons)
        ranking = bandit.rank(context(SLOW, 1), slate(SLOW))
        learned = PRIOR_PASSES * len(CARDS) + len(lessons)
        gamma = 100 * math.sqrt(learned)
        low = min(ranking.expected_costs)
        for i in range(len(ranking.remedies)):
            if i != ranking.best:
                expected = 1 / (len(ranking.remedies) + gamma * (ranking.expected_costs[i] - low))
                assert ranking.probabilities[i] == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize(
        ("remedies", "what"),
        [([], "no remedy to rank"), (["wait", "wait"], "twice"), (["wait", "reboot|it"], r"'reboot\|it' is no remedy")],
    )
    def test_what_cannot_be_ranked_is_refused(self, bandit, remedies, what):
        with pytest.raises(ValueError, match=what):
            bandit.rank(context(SLOW, 1), remedies)

    def test_garbage_is_never_handed_on(self, bandit, monkeypatch):
        monkeypatch.setattr(bandit._workspace, "predict", lambda _: [math.nan, math.nan])
        with pytest.raises(ModelError, match="delete its file"):
            bandit.rank(context(SLOW, 1), ["wait", "open-ticket"])


class TestDraw:
    def test_the_same_key_draws_the_same_remedy(self, bandit):
        one = bandit.rank(context(SLOW, 1), slate(SLOW))
        other = bandit.rank(context(SLOW, 1), slate(SLOW)[::-1])
        for n in range(50):
            drawn = Bandit.draw(one, f"decision-{n}")
            assert drawn == Bandit.draw(one, f"decision-{n}")
            assert one.remedies[drawn] == other.remedies[Bandit.draw(other, f"decision-{n}")]

    def test_keys_draw_by_the_probabilities(self, bandit, teacher):
        bandit.learn([teacher.say("wrong", "switch-source")])  # brings the two best close to each other
        ranking = bandit.rank(context(SLOW, 1), slate(SLOW))
        n = 20_000
        drawn = [Bandit.draw(ranking, f"decision-{i}") for i in range(n)]
        for i, probability in enumerate(ranking.probabilities):
            assert drawn.count(i) / n == pytest.approx(probability, abs=4 * math.sqrt(probability / n))


class TestLearning:
    def test_a_few_ratings_turn_the_order_and_one_does_not(self, bandit, teacher):
        assert best(bandit) == "switch-source"
        seen = [costs(bandit)["switch-source"]]
        for upto in (1, 5, 20):
            while teacher.row < upto:
                bandit.learn([teacher.say("wrong", "switch-source")])
            seen.append(costs(bandit)["switch-source"])
            assert (best(bandit) == "switch-source") == (upto == 1)
        assert seen[0] < seen[1] < seen[2] < seen[3]
        assert seen[1] - seen[0] < 0.2  # one click
        assert seen[3] > 0.85
        assert best(bandit) == "open-ticket"

    def test_good_words_lift_a_remedy_that_its_author_did_not_believe_in(self, bandit, teacher):
        bandit.learn(teacher.say("good", "throttle-link") for _ in range(5))
        assert best(bandit) == "throttle-link"

    def test_contradictory_ratings_settle_in_between(self, bandit, teacher):
        for _ in range(20):
            bandit.learn([teacher.say("good", "switch-source"), teacher.say("wrong", "switch-source")])
        assert 0.35 < costs(bandit)["switch-source"] < 0.65

    def test_minds_can_be_changed(self, bandit, teacher):
        bandit.learn(teacher.say("wrong", "switch-source") for _ in range(20))
        bandit.learn(teacher.say("good", "switch-source") for _ in range(20))
        assert best(bandit) == "switch-source"

    def test_a_rating_moves_its_remedy_alone_and_its_kind_most(self, bandit, teacher):
        before, elsewhere = costs(bandit), costs(bandit, FAILING)
        bandit.learn(teacher.say("wrong", "switch-source") for _ in range(5))
        after, there = costs(bandit), costs(bandit, FAILING)
        for remedy in set(slate(SLOW)) - {"switch-source"}:
            assert after[remedy] == pytest.approx(before[remedy], abs=1e-6)
        moved, carried = (
            new["switch-source"] - old["switch-source"] for new, old in ((after, before), (there, elsewhere))
        )
        assert 0 < carried < 0.6 * moved

    def test_a_rare_draw_counts_twice_not_a_hundredfold(self, teacher):
        moved = []
        for propensity in (None, 0.5, 0.001):
            with Bandit(CARDS) as one:
                before = costs(one, seed=1)["open-ticket"]
                one.learn([teacher.say("wrong", "open-ticket", seed=1, propensity=propensity)])
                moved.append(costs(one, seed=1)["open-ticket"] - before)
        assert moved[0] < moved[1] == moved[2] < 2.1 * moved[0]

    def test_what_nobody_can_tell_and_what_autonomy_says_of_itself_teach_nothing(self, bandit, teacher):
        before = costs(bandit), bandit.hash
        bandit.learn([teacher.say("unknown", "wait", source=FeedbackSource.OUTCOME)])
        bandit.learn([teacher.say("chosen", "wait", source=FeedbackSource.CHOICE, by=reward.AUTONOMY)])
        assert (costs(bandit), bandit.hash) == before
        assert bandit.last_row == 2

    def test_each_row_is_learned_once_and_in_order(self, bandit, teacher):
        lesson = teacher.say("good", "wait")
        bandit.learn([lesson])
        with pytest.raises(ValueError, match="row 1 comes after row 1 was learned"):
            bandit.learn([lesson])


class TestReward:
    def test_every_word_has_a_price_and_the_documentation_says_it(self):
        text = (Path(__file__).parent.parent / "docs/ranking.md").read_text("utf-8")
        for (source, value), price in reward.PRICES.items():
            shown = "none" if price.cost is None else f"{price.cost:g}"
            assert f"| {source} | `{value}` | {shown} | {price.why} |" in text

    def test_the_costs_are_ordered_as_their_reasons_are(self):
        prices = {value: price.cost for (_, value), price in reward.PRICES.items()}
        assert prices["good"] < prices["chosen"] < prices["rejected"] < prices["not-applicable"] < prices["wrong"]
        assert prices["fixed"] < prices["unchanged"] < prices["worse"]

    def test_an_unknown_value_is_refused(self, bandit, teacher):
        with pytest.raises(
            ValueError, match=r"row 1: 'splendid' is no rating feedback; use one of good, not-applicable, wrong"
        ):
            bandit.learn([teacher.say("splendid", "wait")])

    def test_a_lesson_fits_its_decision(self, teacher):
        lesson = teacher.say("good", "wait")
        with pytest.raises(ValueError, match="is on option 0 of 0"):
            Lesson(feedback=lesson.feedback, context={}, options=())
        with pytest.raises(ValueError, match="propensity 0"):
            teacher.say("good", "wait", propensity=0.0)


def assert_alike(one: Bandit, other: Bandit) -> None:
    assert one.hash == other.hash
    assert one.last_row == other.last_row
    for kind in IncidentKind:
        for seed in range(10):
            a, b = (bandit.rank(context(kind, seed), slate(kind)) for bandit in (one, other))
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
            assert a.expected_costs == pytest.approx(b.expected_costs, abs=1e-6)


class TestRestart:
    def test_rebuilt_equals_learned_as_it_came(self, bandit, teacher):
        lessons = mixed(teacher, 300)
        for start in range(0, 300, 7):
            bandit.learn(lessons[start : start + 7])
            bandit.rank(context(SLOW, start), slate(SLOW))  # to rank teaches nothing
        with Bandit.rebuild(CARDS, lessons) as rebuilt:
            assert_alike(bandit, rebuilt)

    def test_saved_and_loaded_goes_on_as_if_it_had_never_stopped(self, bandit, teacher, tmp_path):
        path = tmp_path / "a bandit's file"
        lessons = mixed(teacher, 300)
        for start in range(0, 300, 50):
            with Bandit.restore(path, CARDS, lessons[:start]) as resumed:
                resumed.learn(lessons[start : start + 50])
                resumed.save(path)
        bandit.learn(lessons)
        with Bandit.load(path, CARDS) as loaded:
            assert_alike(bandit, loaded)
        about = json.loads((tmp_path / "a bandit's file.json").read_text())
        assert about["last_row"] == 300
        assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}.json"}

    def test_a_file_that_is_behind_catches_up(self, bandit, teacher, tmp_path):
        lessons = mixed(teacher, 60)
        bandit.learn(lessons[:40])
        bandit.save(tmp_path / "bandit")
        bandit.learn(lessons[40:])
        with Bandit.restore(tmp_path / "bandit", CARDS, lessons) as restored:
            assert_alike(bandit, restored)

    @pytest.mark.parametrize(
        ("spoil", "what"),
        [
            (lambda path: path.unlink(), "cannot be read"),
            (lambda path: path.with_name("bandit.json").unlink(), "cannot be read"),
            (lambda path: path.with_name("bandit.json").write_text("{"), "cannot be read"),
            (lambda path: path.with_name("bandit.json").write_bytes(b"\xff\xfe"), "cannot be read"),
            (lambda path: path.with_name("bandit.json").write_text("[]"), "does not say what"),
            (lambda path: path.with_name("bandit.json").write_text('{"last_row": "3"}'), "does not say what"),
            (lambda path: path.write_bytes(b""), "not the file that"),
            (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not the file that"),
            (lambda path: path.write_bytes(random.Random(1).randbytes(4096)), "not the file that"),
        ],
    )
    def test_a_spoiled_file_is_rebuilt(self, bandit, teacher, tmp_path, spoil, what):
        lessons = mixed(teacher, 20)
        bandit.learn(lessons)
        path = tmp_path / "bandit"
        bandit.save(path)
        spoil(path)
        with pytest.raises(ModelError, match=what):
            Bandit.load(path, CARDS)
        with Bandit.restore(path, CARDS, lessons) as restored:
            assert_alike(bandit, restored)

    def test_a_file_of_another_catalogue_or_ledger_is_rebuilt(self, bandit, teacher, tmp_path, monkeypatch):
        lessons = mixed(teacher, 20)
        bandit.learn(lessons)
        path = tmp_path / "bandit"
        bandit.save(path)
        changed = CARDS | {"wait": card("wait", ALL, 0.9)}
        with pytest.raises(ModelError, match="another catalogue"):
            Bandit.load(path, changed)
        other = mixed(Teacher(), 10)
        with Bandit.restore(path, CARDS, other) as restored, Bandit.rebuild(CARDS, other) as rebuilt:
            assert_alike(restored, rebuilt)
        monkeypatch.setattr(features, "VERSION", 0)
        with pytest.raises(ModelError, match="another recipe"):
            Bandit.load(path, CARDS)

    def test_an_unwritable_place_is_an_error(self, bandit, tmp_path):
        with pytest.raises(OSError, match="nowhere"):
            bandit.save(tmp_path / "nowhere" / "bandit")

    def test_closing_twice_is_closing_once(self):
        bandit = Bandit(CARDS)
        bandit.close()
        bandit.close()


class Operators:
    """A seeded world in which every remedy is right at a rate of its own per kind and role, and all shown ones are rated."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.rates: dict[tuple[str, str, str], float] = {}

    def rate(self, remedy: str, seen: dict[str, float | str]) -> float:
        base = self.rates.setdefault((remedy, str(seen["kind"]), ""), self.pick.random())
        role = self.rates.setdefault((remedy, str(seen["kind"]), str(seen["role"])), self.pick.random())
        return 0.6 * base + 0.4 * role


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_simulated_operators_are_served_better_than_by_chance_and_by_priors_that_are_wrong(teacher, seed):
    world = Operators(seed)
    regret = {"bandit": 0.0, "random": 0.0, "priors": 0.0}
    with Bandit(CARDS) as bandit:
        for turn in range(400):
            kind = world.pick.choice([SLOW, FAILING, DELETIONS])
            seen, offered = context(kind, turn), slate(kind)
            rates = [world.rate(remedy, seen) for remedy in offered]
            ranking = bandit.rank(seen, offered)
            if turn >= 50:
                expected = sum(p * rate for p, rate in zip(ranking.probabilities, rates, strict=True))
                believed = max(range(len(offered)), key=lambda i: CARDS[offered[i]].prior)
                regret["bandit"] += max(rates) - expected
                regret["random"] += max(rates) - sum(rates) / len(rates)
                regret["priors"] += max(rates) - rates[believed]
            drawn = Bandit.draw(ranking, str(turn))
            for i, remedy in enumerate(offered):
                value = "good" if world.pick.random() < rates[i] else "wrong"
                propensity = ranking.probabilities[i] if i == drawn else None
                bandit.learn([teacher.say(value, remedy, kind, seed=turn, propensity=propensity)])
    assert regret["bandit"] < 0.5 * regret["random"]
    assert regret["bandit"] < 0.7 * regret["priors"]


def test_the_arguments_are_those_that_the_documentation_names():
    assert f"`{ARGUMENTS}`" in (Path(__file__).parent.parent / "docs/ranking.md").read_text("utf-8")
