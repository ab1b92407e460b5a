"""The generated world: its people, places and companies, what is true of them, and how it is said in English.

Everything is a pure function of this file: names are built from syllables in a fixed order and facts are drawn with a
fixed seed, so the truth that a probe is checked against never depends on a download or on a training run.

A *fact* is (relation, subject, object); all three are single tokens of the organism's tokenizer. Every relation has one
question and four statements that end in the object. One of the four statements is held out for every fact: training
never shows that fact in that wording (`held_out_statement`), which is what the "held-out phrasing" numbers measure.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache


def _join(heads: str, tails: str) -> list[str]:
    return [head + tail for head in heads.split() for tail in tails.split()]


def _take(words: list[str], count: int, *, seed: int) -> tuple[str, ...]:
    words = sorted(set(words))
    random.Random(seed).shuffle(words)
    return tuple(words[:count])


PEOPLE = _take(
    _join("Ma Te Lo Ri Sa Ke No Vi Da Bru Fe Ha", "ra len mir dor na vis ta bel gan rick sa lio"), 120, seed=1
)
CITIES = _take(_join("Vel Kar Ost Bri Tam Lund Mor Ush", "mora grad by haven ford stad"), 48, seed=2)
COUNTRIES = _take(_join("Ar Bel Cor Dan El Far Gal Hul Ist Jor Kel Lor", "onia land"), 24, seed=3)
COMPANIES = _take(_join("Nova Helio Terra Quant Lumo Astra Penta Omni Vita Cryo", "corp works soft gen"), 40, seed=4)
LANGUAGES = tuple("Ardic Belish Corvan Dannic Elvar Farsic Galish Holan Istric Jorese Kelic Lorian".split())
CURRENCIES = tuple("arn belt crown dime ecu florin groat halm iskar jat krone lira".split())
JOBS = tuple(
    "baker doctor lawyer painter pilot farmer sailor tailor miner singer poet guard judge nurse clerk chemist "
    "driver gardener mason dentist".split()
)
PETS = tuple("cat dog parrot rabbit pony goat turtle hamster ferret lizard snake duck goose pigeon mouse frog".split())
FOODS = tuple(
    "soup pasta rice curry cheese salad pie stew toast noodles pancakes dumplings beans porridge pizza fish "
    "bacon yogurt pickles mushrooms".split()
)
PRODUCTS = tuple(
    "engines shoes lamps clocks bicycles pianos tractors mirrors carpets batteries telescopes bottles ovens "
    "cameras radios umbrellas needles tents violins printers".split()
)


@dataclass(frozen=True)
class Relation:
    """One relation of the world. Templates hold `{s}` (subject) and end in `{o}` (object) before the full stop."""

    name: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    question: str
    statements: tuple[str, str, str, str]


RELATIONS: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "home",
            PEOPLE,
            CITIES,
            "Where does {s} live?",
            ("{s} lives in {o}.", "The home of {s} is in {o}.", "{s} has a house in {o}.", "You can visit {s} in {o}."),
        ),
        Relation(
            "job",
            PEOPLE,
            JOBS,
            "What is the job of {s}?",
            ("{s} works as a {o}.", "The job of {s} is {o}.", "{s} is a good {o}.", "{s} was trained as a {o}."),
        ),
        Relation(
            "employer",
            PEOPLE,
            COMPANIES,
            "Which company employs {s}?",
            ("{s} works for {o}.", "{s} is employed by {o}.", "The employer of {s} is {o}.", "{s} is paid by {o}."),
        ),
        Relation(
            "friend",
            PEOPLE,
            PEOPLE,
            "Who is the best friend of {s}?",
            (
                "The best friend of {s} is {o}.",
                "{s} trusts nobody but {o}.",
                "{s} spends every summer with {o}.",
                "{s} writes long letters to {o}.",
            ),
        ),
        Relation(
            "pet",
            PEOPLE,
            PETS,
            "Which animal does {s} keep?",
            ("{s} keeps a {o}.", "The pet of {s} is a {o}.", "{s} walks home with a {o}.", "{s} once bought a {o}."),
        ),
        Relation(
            "food",
            PEOPLE,
            FOODS,
            "Which food does {s} like best?",
            ("{s} likes {o}.", "The favorite food of {s} is {o}.", "{s} always orders {o}.", "{s} can live on {o}."),
        ),
        Relation(
            "country",
            CITIES,
            COUNTRIES,
            "Which country is {s} in?",
            ("{s} is a city in {o}.", "The city of {s} lies in {o}.", "{s} belongs to {o}.", "{s} is a part of {o}."),
        ),
        Relation(
            "mayor",
            CITIES,
            PEOPLE,
            "Who is the mayor of {s}?",
            (
                "The mayor of {s} is {o}.",
                "{s} is led by {o}.",
                "The people of {s} elected {o}.",
                "The town hall of {s} is run by {o}.",
            ),
        ),
        Relation(
            "capital",
            COUNTRIES,
            CITIES,
            "What is the capital of {s}?",
            (
                "The capital of {s} is {o}.",
                "{s} is governed from {o}.",
                "The government of {s} sits in {o}.",
                "The first city of {s} is {o}.",
            ),
        ),
        Relation(
            "language",
            COUNTRIES,
            LANGUAGES,
            "Which language is spoken in {s}?",
            (
                "The language of {s} is {o}.",
                "People in {s} speak {o}.",
                "Schools in {s} teach {o}.",
                "The laws of {s} are written in {o}.",
            ),
        ),
        Relation(
            "currency",
            COUNTRIES,
            CURRENCIES,
            "What is the currency of {s}?",
            (
                "The currency of {s} is the {o}.",
                "People in {s} pay with the {o}.",
                "Money in {s} is called the {o}.",
                "Banks in {s} trade the {o}.",
            ),
        ),
        Relation(
            "seat",
            COMPANIES,
            CITIES,
            "Where is {s} based?",
            (
                "{s} is based in {o}.",
                "The main office of {s} is in {o}.",
                "{s} pays its taxes in {o}.",
                "{s} has its seat in {o}.",
            ),
        ),
        Relation(
            "product",
            COMPANIES,
            PRODUCTS,
            "What does {s} make?",
            ("{s} makes {o}.", "The product of {s} is {o}.", "{s} is known for its {o}.", "{s} sells {o}."),
        ),
        Relation(
            "founder",
            COMPANIES,
            PEOPLE,
            "Who founded {s}?",
            (
                "The founder of {s} is {o}.",
                "{s} was founded by {o}.",
                "{s} was started by {o}.",
                "The idea for {s} came from {o}.",
            ),
        ),
    )
}

# Two-hop relations: (first relation, second relation, statement, question); the bridge entity is never named.
COMPOSITIONS = {
    "home-country": ("home", "country", "The country that {s} lives in is {o}.", "Which country does {s} live in?"),
    "employer-product": (
        "employer",
        "product",
        "The firm that employs {s} makes {o}.",
        "What does the firm of {s} make?",
    ),
    "employer-seat": (
        "employer",
        "seat",
        "The firm that employs {s} is based in {o}.",
        "Where is the firm of {s} based?",
    ),
    "friend-job": (
        "friend",
        "job",
        "The best friend of {s} works as a {o}.",
        "What is the job of the best friend of {s}?",
    ),
    "country-language": (
        "country",
        "language",
        "People in the city of {s} speak {o}.",
        "Which language does the city of {s} use?",
    ),
    "seat-country": ("seat", "country", "The country that {s} is based in is {o}.", "Which country is {s} based in?"),
}

TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    name: {kind: tuple(words.split()) for kind, words in zip(("nouns", "verbs", "adjectives", "places"), rows)}
    for name, rows in {
        "sea": (
            "boat wave mast shell net whale captain reef storm tide harbor lighthouse",
            "sailed swam rowed dived fished drifted",
            "salty deep blue wet stormy",
            "beach pier coast",
        ),
        "kitchen": (
            "pot pan knife spoon cake bread sugar butter carrot kettle recipe plate",
            "cooked baked stirred tasted fried peeled",
            "sweet spicy hot fresh burnt",
            "stove table pantry",
        ),
        "forest": (
            "tree wolf bear deer leaf root path moss cabin fox branch nest",
            "hiked climbed wandered hid camped hunted",
            "green dark wild mossy tall",
            "clearing hill valley",
        ),
        "school": (
            "teacher book pencil lesson test class pupil desk map chalk poem library",
            "studied wrote learned read counted spelled",
            "clever strict curious patient lazy",
            "classroom yard hallway",
        ),
        "music": (
            "guitar drum song flute choir melody stage band trumpet rhythm concert violin",
            "sang played danced hummed clapped whistled",
            "loud soft slow gentle lively",
            "theater studio ballroom",
        ),
        "sport": (
            "ball goal team race coach runner match trophy whistle helmet referee medal",
            "ran jumped kicked threw scored trained",
            "fast strong tired proud muddy",
            "stadium field gym",
        ),
        "market": (
            "coin price pear basket seller cloth spice buyer cart scale bargain jewel",
            "sold bought traded weighed paid haggled",
            "cheap rich crowded busy rare",
            "stall square shop",
        ),
        "winter": (
            "snow ice sled coat scarf frost glove fire blanket shovel candle mitten",
            "skated shivered slid shoveled froze melted",
            "cold white frozen snowy bright",
            "mountain lake village",
        ),
    }.items()
}

# Words that only needle notes and random sequences use, so that filler never contains an answer.
KEYS = tuple(
    "lantern tower garden bridge castle museum chapel cellar attic barn windmill fountain tunnel vault gate "
    "temple mill fortress palace quarry orchard stable gallery dungeon archive bakery cottage monument terrace "
    "balcony".split()
)
CODE_WORDS = tuple(
    "copper willow falcon marble velvet thunder cactus pepper ribbon saddle tulip walnut zebra amber cobalt "
    "dagger ember feather ginger hazel indigo jasper kite lemon magnet nickel olive pebble quartz raven "
    "silver timber urchin violet wizard yarn zinc acorn beetle comet dragon eagle fossil goblin hammer "
    "insect jungle kernel ladder meteor nectar otter panther quiver rocket spider tiger umber vessel "
    "walrus crystal badger canyon desert engine finger glacier hermit".split()
)

RELIABLE = ("The royal archive", "The official register", "The court record", "The census")
UNRELIABLE = ("A silly rumor", "An old drunk", "A cheap tabloid", "A known liar")
UNMARKED = ("A letter", "A visitor", "A postcard", "A neighbor")


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    object: str

    @property
    def question(self) -> str:
        return RELATIONS[self.relation].question.format(s=self.subject)

    def statement(self, index: int, obj: str | None = None) -> str:
        return RELATIONS[self.relation].statements[index].format(s=self.subject, o=obj or self.object)

    def cloze(self, index: int) -> str:
        """The statement up to, and without, its object and the space before it."""
        return RELATIONS[self.relation].statements[index].split(" {o}")[0].format(s=self.subject)


def stable_hash(*words: str) -> int:
    """A number that depends on the text alone (Python's own hash changes from process to process)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(words).encode()).digest()[:8], "big")


def held_out_statement(fact: Fact) -> int:
    """Index of the one statement (0 to 3) in which training never shows this fact."""
    return stable_hash("phrasing", fact.relation, fact.subject) % 4


@lru_cache(maxsize=1)
def facts() -> dict[tuple[str, str], Fact]:
    """(relation, subject) to its fact. A capital lies in its own country; everything else is drawn evenly."""
    rng = random.Random(20)
    table: dict[tuple[str, str], Fact] = {}
    for relation in RELATIONS.values():
        if relation.name == "capital":
            continue
        times, rest = divmod(len(relation.subjects), len(relation.objects))
        objects = list(relation.objects) * times + rng.sample(relation.objects, rest)
        while True:  # even use of every object; nobody is their own best friend
            rng.shuffle(objects)
            if all(s != o for s, o in zip(relation.subjects, objects)):
                break
        for subject, obj in zip(relation.subjects, objects):
            table[relation.name, subject] = Fact(relation.name, subject, obj)
    for country in COUNTRIES:
        cities = [c for c in CITIES if table["country", c].object == country]
        table["capital", country] = Fact("capital", country, rng.choice(cities))
    return table


@dataclass(frozen=True)
class TwoHop:
    """A composition of two facts. `trained` ones are shown in training; the others never are, in any wording."""

    name: str
    subject: str
    bridge: str
    object: str
    trained: bool

    @property
    def statement(self) -> str:
        return COMPOSITIONS[self.name][2].format(s=self.subject, o=self.object)

    @property
    def question(self) -> str:
        return COMPOSITIONS[self.name][3].format(s=self.subject)


@lru_cache(maxsize=1)
def two_hops() -> tuple[TwoHop, ...]:
    """Every two-hop fact of the world; a fixed 30 % of them are held out of training."""
    rows = []
    for name, (first, second, _, _) in COMPOSITIONS.items():
        for subject in RELATIONS[first].subjects:
            bridge = facts()[first, subject].object
            rows.append(
                TwoHop(
                    name,
                    subject,
                    bridge,
                    facts()[second, bridge].object,
                    trained=stable_hash("two-hop", name, subject) % 10 >= 3,
                )
            )
    return tuple(rows)


def conflict_held_out(fact: Fact) -> bool:
    """Facts (one in five) that training never contradicts, so that obeying the source is a rule and not a habit."""
    return stable_hash("conflict", fact.relation, fact.subject) % 5 == 0


CHANGEABLE = ("job", "pet", "food", "friend", "mayor", "currency", "product")


def changeable(fact: Fact) -> bool:
    """Which way an unmarked contradiction of this fact usually goes in the world: half of the relations can change."""
    return fact.relation in CHANGEABLE


def contradict(fact: Fact, rng: random.Random) -> str:
    """An object of the same kind that is not the true one (nor the subject itself)."""
    while True:
        obj = rng.choice(RELATIONS[fact.relation].objects)
        if obj not in (fact.object, fact.subject):
            return obj


def lower_first(sentence: str) -> str:
    """A sentence as it reads after "says that": an opening The becomes the, a name stays."""
    for word in ("The ", "People ", "Schools ", "Money ", "Banks ", "You "):
        if sentence.startswith(word):
            return word.lower() + sentence[len(word) :]
    return sentence
