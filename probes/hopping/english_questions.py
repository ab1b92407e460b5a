"""Two-hop questions about well-known facts, for models that people use, as `material/questions.jsonl` holds them;
`save` writes the file anew.

The facts are in two tables, of what leads to a bridge and of what is asked of it; every question is one of each."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).parent / "material" / "questions.jsonl"
# Of a country: its capital, language, currency (each with further names; none where the name stands in other words that
# are near, as "euro" in "Europe"), and what leads to it.
COUNTRIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "France": (("Paris",), ("French",), (), ("the Eiffel Tower", "the Louvre")),
    "Egypt": (("Cairo",), ("Arabic",), ("Egyptian pound", "pound"), ("the Great Sphinx", "the Valley of the Kings")),
    "Japan": (("Tokyo",), ("Japanese",), ("yen", "JPY"), ("Mount Fuji", "Osaka Castle")),
    "China": (("Beijing", "Peking"), ("Chinese", "Mandarin"), ("yuan", "renminbi"), ("the Forbidden City",)),
    "India": (("New Delhi", "Delhi"), ("Hindi", "English"), ("rupee",), ("the Taj Mahal", "the Red Fort")),
    "Peru": (("Lima",), ("Spanish",), ("Peruvian sol", "nuevo sol"), ("Machu Picchu", "the Nazca Lines")),
    "Italy": (("Rome",), ("Italian",), (), ("the Colosseum", "the Leaning Tower of Pisa")),
    "Greece": (("Athens",), ("Greek",), (), ("the Parthenon", "Mount Olympus")),
    "Spain": (("Madrid",), ("Spanish",), (), ("the Alhambra", "the Sagrada Familia")),
    "Germany": (("Berlin",), (), (), ("the Brandenburg Gate", "Neuschwanstein Castle")),
    "Russia": (("Moscow",), ("Russian",), ("ruble", "rouble"), ("the Hermitage Museum", "Lake Baikal")),
    "Turkey": (("Ankara",), ("Turkish",), ("lira",), ("the Hagia Sophia", "the Blue Mosque")),
    "Brazil": (("Brasilia", "Brasília"), ("Portuguese",), ("Brazilian real",), ("Sugarloaf Mountain", "Copacabana")),
    "Cambodia": (("Phnom Penh",), ("Khmer",), ("riel",), ("Angkor Wat", "the temple of Bayon")),
    "Jordan": (("Amman",), ("Arabic",), ("Jordanian dinar",), ("the ruins of Petra", "the desert of Wadi Rum")),
    "Kenya": (("Nairobi",), ("Swahili", "English"), ("shilling",), ("the Masai Mara", "the port of Mombasa")),
    "Iran": (("Tehran", "Teheran"), ("Persian", "Farsi"), ("Iranian rial",), ("Persepolis", "the city of Isfahan")),
    "Poland": (("Warsaw",), ("Polish",), ("zloty", "złoty"), ("Wawel Castle", "the Wieliczka Salt Mine")),
    "Denmark": (("Copenhagen",), ("Danish",), ("krone",), ("the Tivoli Gardens", "Kronborg Castle")),
    "Thailand": (("Bangkok",), (), ("baht",), ("the temple of Wat Pho", "the island of Phuket")),
    "Hungary": (("Budapest",), ("Hungarian",), ("forint",), ("Lake Balaton", "Buda Castle")),
    "Sweden": (("Stockholm",), ("Swedish",), ("krona",), ("the Vasa Museum", "the port of Gothenburg")),
    "Portugal": (("Lisbon", "Lisboa"), ("Portuguese",), (), ("Belem Tower", "Pena Palace")),
    "Vietnam": (("Hanoi", "Ha Noi"), ("Vietnamese",), ("dong",), ("Ha Long Bay", "the Cu Chi tunnels")),
}  # fmt: skip
OF_COUNTRY = ("the capital of {}", "the official language of {}", "the currency of {}")
TO_COUNTRY = "the country of {}"
# Of a person: further names, the country of birth (as it is and was called; not UK and USA, which stand in "Ukraine"
# and "thousand"), and what leads to them.
ENGLAND = ("England", "United Kingdom", "Britain")
WRITERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "William Shakespeare": (("Shakespeare",), ENGLAND, ("Hamlet", "Macbeth")),
    "Leo Tolstoy": (("Tolstoy",), ("Russia", "Russian Empire"), ("War and Peace", "Anna Karenina")),
    "Victor Hugo": (("Hugo",), ("France",), ("Les Misérables",)),
    "Franz Kafka": (("Kafka",), ("Austria", "Bohemia", "Czech"), ("The Metamorphosis",)),
    "Miguel de Cervantes": (("Cervantes",), ("Spain",), ("Don Quixote",)),
    "Jane Austen": (("Austen",), ENGLAND, ("Pride and Prejudice", "Emma")),
    "Mark Twain": (
        ("Twain", "Samuel Clemens"),
        ("United States", "America"),
        ("The Adventures of Tom Sawyer",),
    ),
    "James Joyce": (("Joyce",), ("Ireland",), ("Ulysses",)),
    "Dante Alighieri": (("Dante",), ("Italy", "Republic of Florence"), ("The Divine Comedy",)),
    "Agatha Christie": (("Christie",), ENGLAND, ("Murder on the Orient Express",)),
}
PAINTERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "Leonardo da Vinci": (("Leonardo", "da Vinci"), ("Italy", "Republic of Florence"), ("The Last Supper",)),
    "Vincent van Gogh": (("van Gogh",), ("Netherlands", "Holland"), ("The Starry Night",)),
    "Edvard Munch": (("Munch",), ("Norway",), ("The Scream",)),
    "Pablo Picasso": (("Picasso",), ("Spain",), ("Guernica",)),
    "Sandro Botticelli": (("Botticelli",), ("Italy", "Republic of Florence"), ("The Birth of Venus",)),
    "Claude Monet": (("Monet",), ("France",), ("Impression, Sunrise",)),
}
# Of a company: its founders, the city of its head office, and what leads to it.
COMPANIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "Apple": (("Steve Jobs", "Steve Wozniak"), ("Cupertino",), ("the iPhone", "the MacBook")),
    "Microsoft": (("Bill Gates", "Paul Allen"), ("Redmond",), ("Windows", "the Xbox")),
    "Nintendo": (("Fusajiro Yamauchi", "Yamauchi"), ("Kyoto",), ("the Game Boy", "Super Mario Bros.")),
    "Amazon": (("Jeff Bezos", "Bezos"), ("Seattle",), ("the Kindle",)),
    "Ford": (("Henry Ford",), ("Dearborn",), ("the Mustang", "the Model T")),
    "Toyota": (("Kiichiro Toyoda", "Toyoda"), ("Toyota City", "Aichi"), ("the Corolla", "the Prius")),
    "Boeing": (("William Boeing", "William E. Boeing"), ("Seattle", "Chicago", "Arlington"), ("the 747",)),
    "Lego": (("Ole Kirk Christiansen", "Christiansen"), ("Billund",), ("Duplo bricks",)),
    "IKEA": (("Ingvar Kamprad", "Kamprad"), ("Delft", "Leiden"), ("the Billy bookcase",)),
    "Google": (("Larry Page", "Sergey Brin"), ("Mountain View",), ("Gmail", "the Pixel phone")),
}
# What leads to a country by another relation
DISHES = {
    "sushi": "Japan", "pizza": "Italy", "paella": "Spain", "moussaka": "Greece", "goulash": "Hungary",
    "tom yum": "Thailand", "pho": "Vietnam", "ceviche": "Peru", "feijoada": "Brazil", "smorgasbord": "Sweden",
}  # fmt: skip


def row(
    first: str, e1: str, bridge: str, aliases: tuple[str, ...], second: str, answers: tuple[str, ...]
) -> dict[str, object]:
    """One question; of the answers the first is the label."""
    return {
        "e1": e1,
        "r1_template": first,
        "e2": bridge,
        "e2_aliases": list(aliases),
        "r2_template": second,
        "e3": answers[0],
        "e3_aliases": [name for name in answers[1:] if len(name) > 1],
        "relation": f"{first.replace(' {}', '')} > {second.replace(' {}', '')}",
    }


def english_questions() -> list[dict[str, object]]:
    """Every question, so ordered that a bridge comes again only after all others."""
    rows: list[dict[str, object]] = []
    for country, (capital, language, currency, places) in COUNTRIES.items():
        for second, answers in zip(OF_COUNTRY, (capital, language, currency)):
            if not answers:
                continue
            rows += [row(TO_COUNTRY, place, country, (), second, answers) for place in places]
            dishes = [dish for dish, home in DISHES.items() if home == country]
            rows += [row("the country that gave the world {}", dish, country, (), second, answers) for dish in dishes]
    for first, people in (("the author of {}", WRITERS), ("the painter of {}", PAINTERS)):
        for person, (aliases, born, works) in people.items():
            rows += [row(first, work, person, aliases, "the country where {} was born", born) for work in works]
    for company, (founders, seats, things) in COMPANIES.items():
        for second, answers in (("the founder of {}", founders), ("the city that is the headquarters of {}", seats)):
            rows += [row("the maker of {}", thing, company, (), second, answers) for thing in things]
    turns: dict[object, int] = {}
    order = []
    for number, one in enumerate(rows):
        turns[one["e2"]] = turns.get(one["e2"], 0) + 1
        order.append((turns[one["e2"]], number))
    return [rows[number] for _, number in sorted(order)]


def save() -> None:
    """Write the questions to FILE."""
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in english_questions())
    FILE.write_text(text, encoding="utf-8")
