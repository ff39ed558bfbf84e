"""The sample's databases: pairs of tables, one referring to the other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Columns besides `id`, in order; words and numbers have the values they may take."""

    name: str
    words: dict[str, tuple[str, ...]]
    numbers: dict[str, tuple[int, int]]
    """Lowest and highest value."""
    refers_to: str | None = None
    """The parent table's name in the singular; its key is the column `NAME_id`."""

    @property
    def columns(self) -> list[str]:
        link = [f"{self.refers_to}_id"] if self.refers_to else []
        return ["id", *self.words, *self.numbers, *link]

    @property
    def schema(self) -> str:
        return f"{self.name}({', '.join(self.columns)})"


@dataclass(frozen=True)
class Domain:
    parent: Table
    child: Table
    seen: bool = True
    """Whether its questions may occur in training."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Ada Ben Cleo Dan Eva Finn Gia Hugo Iris Jon Kira Leo Mia Nils Ola Pia Quinn Rosa Sam Tess"
)
PLACES = _words("Paris Rome Oslo Lima Cairo Delhi Tokyo Berlin")
COLORS = _words("red blue green black white")
TITLES = _words(
    "Aurora Beacon Cascade Delta Ember Falcon Granite Harbor Ivory Jade Kestrel Lagoon "
    "Meadow Nectar Orbit Prism Quartz Raven Saffron Tundra"
)


def _domain(
    parent: str,
    singular: str,
    parent_words: dict[str, tuple[str, ...]],
    parent_numbers: dict[str, tuple[int, int]],
    child: str,
    child_words: dict[str, tuple[str, ...]],
    child_numbers: dict[str, tuple[int, int]],
    seen: bool = True,
) -> Domain:
    return Domain(
        Table(parent, parent_words, parent_numbers),
        Table(child, child_words, child_numbers, refers_to=singular),
        seen,
    )


DOMAINS = (
    _domain(
        "departments",
        "department",
        {"title": TITLES, "floor": _words("first second third")},
        {"budget": (100, 900)},
        "employees",
        {"name": PEOPLE, "city": PLACES},
        {"salary": (20, 95), "age": (21, 64)},
    ),
    _domain(
        "authors",
        "author",
        {"name": PEOPLE, "country": _words("France Italy Norway Peru Egypt")},
        {"born": (1920, 1999)},
        "books",
        {"title": TITLES, "genre": _words("poetry drama crime history")},
        {"pages": (80, 900), "price": (5, 60)},
    ),
    _domain(
        "teams",
        "team",
        {"name": TITLES, "city": PLACES},
        {"founded": (1900, 2010)},
        "players",
        {"name": PEOPLE, "position": _words("keeper defender forward winger")},
        {"goals": (0, 50), "height": (160, 205)},
    ),
    _domain(
        "courses",
        "course",
        {"title": TITLES, "subject": _words("math physics art music")},
        {"credits": (1, 30)},
        "students",
        {"name": PEOPLE, "major": _words("law biology design finance")},
        {"score": (30, 99), "year": (2015, 2030)},
    ),
    _domain(
        "shops",
        "shop",
        {"name": TITLES, "city": PLACES},
        {"area": (40, 600)},
        "products",
        {"label": TITLES, "color": COLORS},
        {"price": (1, 300), "stock": (0, 500)},
    ),
    _domain(
        "customers",
        "customer",
        {"name": PEOPLE, "segment": _words("retail online partner")},
        {"points": (10, 990)},
        "orders",
        {"code": TITLES, "status": _words("open paid shipped returned")},
        {"amount": (5, 700), "items": (1, 40)},
    ),
    _domain(
        "airlines",
        "airline",
        {"name": TITLES, "country": _words("Spain Kenya Chile Japan")},
        {"fleet": (5, 300)},
        "flights",
        {"code": TITLES, "destination": PLACES},
        {"distance": (200, 9000), "delay": (0, 180)},
    ),
    _domain(
        "artists",
        "artist",
        {"name": PEOPLE, "style": _words("jazz rock folk soul")},
        {"albums": (1, 30)},
        "songs",
        {"title": TITLES, "language": _words("English French Spanish German")},
        {"length": (90, 600), "plays": (10, 9000)},
    ),
    _domain(
        "doctors",
        "doctor",
        {"name": PEOPLE, "specialty": _words("heart skin bone eye")},
        {"experience": (1, 40)},
        "patients",
        {"name": PEOPLE, "blood": _words("alpha beta gamma delta")},
        {"weight": (45, 120), "visits": (1, 60)},
    ),
    _domain(
        "farms",
        "farm",
        {"name": TITLES, "region": _words("north south east west")},
        {"acres": (10, 900)},
        "animals",
        {"name": PEOPLE, "species": _words("cow goat sheep horse")},
        {"weight": (20, 800), "age": (1, 25)},
    ),
    _domain(
        "owners",
        "owner",
        {"name": PEOPLE, "city": PLACES},
        {"income": (15, 400)},
        "cars",
        {"model": TITLES, "color": COLORS},
        {"speed": (120, 320), "price": (5, 200)},
    ),
    _domain(
        "chefs",
        "chef",
        {"name": PEOPLE, "cuisine": _words("thai greek indian mexican")},
        {"stars": (1, 60)},
        "recipes",
        {"title": TITLES, "course": _words("starter main dessert soup")},
        {"minutes": (5, 240), "calories": (50, 1200)},
    ),
    _domain(
        "publishers",
        "publisher",
        {"name": TITLES, "city": PLACES},
        {"revenue": (10, 900)},
        "magazines",
        {"title": TITLES, "topic": _words("science sport fashion travel")},
        {"issues": (4, 60), "readers": (100, 9000)},
    ),
    _domain(
        "parks",
        "park",
        {"name": TITLES, "climate": _words("dry humid cold mild")},
        {"size": (5, 800)},
        "trails",
        {"name": TITLES, "level": _words("easy medium hard")},
        {"length": (1, 90), "climb": (10, 2000)},
    ),
    _domain(
        "banks",
        "bank",
        {"name": TITLES, "country": _words("Spain Kenya Chile Japan")},
        {"branches": (3, 400)},
        "accounts",
        {"holder": PEOPLE, "kind": _words("savings current joint")},
        {"balance": (10, 9000), "fee": (0, 50)},
    ),
    _domain(
        "studios",
        "studio",
        {"name": TITLES, "city": PLACES},
        {"staff": (10, 900)},
        "games",
        {"title": TITLES, "platform": _words("mobile console desktop")},
        {"rating": (10, 99), "sales": (5, 900)},
    ),
    _domain(
        "museums",
        "museum",
        {"name": TITLES, "city": PLACES},
        {"visitors": (100, 9000)},
        "paintings",
        {"title": TITLES, "style": _words("modern gothic baroque abstract")},
        {"value": (10, 950), "width": (20, 400)},
        seen=False,
    ),
    _domain(
        "hotels",
        "hotel",
        {"name": TITLES, "country": _words("Malta Cuba Nepal Iceland")},
        {"beds": (10, 600)},
        "rooms",
        {"code": TITLES, "view": _words("sea garden street")},
        {"rent": (30, 500), "capacity": (1, 40)},
        seen=False,
    ),
    _domain(
        "directors",
        "director",
        {"name": PEOPLE, "country": _words("Malta Cuba Nepal Iceland")},
        {"awards": (0, 40)},
        "movies",
        {"title": TITLES, "mood": _words("comic tragic tense")},
        {"runtime": (70, 220), "profit": (1, 900)},
        seen=False,
    ),
)
