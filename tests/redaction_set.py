"""Strings with personal data, and strings that only look so: five languages, logs, JSON, dates, article numbers, addresses.

Made with a seed, so that the figures are the same everywhere. No number or address belongs to anybody on purpose.
"""

import datetime
import random
import uuid
from collections.abc import Callable, Iterator

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType
from stdnum import iban, luhn
from stdnum.iso7064 import mod_97_10

REGIONS = {"en": ("US", "GB"), "de": ("DE",), "fr": ("FR",), "es": ("ES",), "pt": ("PT", "BR")}
FIRST = {
    "en": ("emma", "liam", "grace", "noah"), "de": ("anna", "jonas", "heike", "uwe"),
    "fr": ("chloe", "hugo", "manon", "luc"), "es": ("lucia", "pablo", "marta", "diego"),
    "pt": ("ines", "tiago", "rita", "joao"),
}  # fmt: skip
LAST = ("smith", "weber", "moreau", "garcia", "costa", "o'neil", "van-dyck", "nilsson")
HOSTS = (
    "example.com",
    "mail.example.org",
    "web.de",
    "orange.fr",
    "correo.es",
    "sapo.pt",
    "shop.co.uk",
)
SAYS = {
    "en": ("My number is {}.", "You can reach me at {}", "Please call {} after six.", "{} is my mobile, thanks"),
    "de": ("Meine Nummer ist {}.", "Sie erreichen mich unter {}", "Bitte rufen Sie {} an.", "Handy: {}"),
    "fr": ("Mon numéro est le {}.", "Vous pouvez m'appeler au {}", "Tél. {}", "Rappelez-moi au {} svp"),
    "es": ("Mi número es {}.", "Pueden llamarme al {}", "Móvil: {}", "Mi teléfono es el {}"),
    "pt": ("O meu número é {}.", "Podem ligar-me para o {}", "Telemóvel: {}", "Contacto: {}"),
}  # fmt: skip
SENDS = {
    "en": ("Ship it to {}", "I live at {}.", "New address: {}"),
    "de": ("Bitte an {} schicken", "Ich wohne in der {}.", "Neue Adresse: {}"),
    "fr": ("Livrez au {}", "J'habite {}.", "Nouvelle adresse : {}"),
    "es": ("Envíenlo a {}", "Vivo en {}.", "Nueva dirección: {}"),
    "pt": ("Enviem para {}", "Moro na {}.", "Nova morada: {}"),
}  # fmt: skip
STREETS = {
    "en": ("{n} Birch Road", "{n} Old Mill Lane", "{n}b King Street", "{n} Fifth Avenue", "{n} St. Mary's Close"),
    "de": ("Lindenstraße {n}", "Am-Bach-Weg {n}a", "Goethestr. {n}", "Marktplatz {n}", "Schillerallee {n}"),
    "fr": ("{n} rue de la Paix", "{n} avenue Victor Hugo", "{n} bis, rue Pasteur", "{n} place de la Mairie", "{n} quai Voltaire"),
    "es": ("Calle Mayor {n}", "Avenida de la Paz, {n}", "Plaza España {n}", "C/ Sol {n}", "Paseo del Prado {n}"),
    "pt": ("Rua das Flores {n}", "Avenida da Liberdade, {n}", "Travessa do Carmo {n}", "Praça do Comércio {n}", "Largo da Graça {n}"),
}  # fmt: skip
BANKS = {"DE": 18, "FR": 23, "ES": 20, "PT": 21}


def _phone(rng: random.Random, locale: str) -> str:
    """A valid number of the locale's country, as people and forms write it."""
    region = rng.choice(REGIONS[locale])
    while True:
        example = phonenumbers.example_number_for_type(
            region, rng.choice((PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE))
        )
        assert example is not None
        digits = str(example.national_number)
        tail = "".join(rng.choice("0123456789") for _ in digits[-5:])
        number = phonenumbers.PhoneNumber(
            country_code=example.country_code, national_number=int(digits[:-5] + tail)
        )
        if phonenumbers.is_valid_number(number):
            break
    form = rng.choice((
        PhoneNumberFormat.NATIONAL, PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.E164,
    ))  # fmt: skip
    return phonenumbers.format_number(number, form)


def _card(rng: random.Random) -> str:
    head = rng.choice(("4", "51", "55", "2221", "37", "6011"))
    length = 15 if head == "37" else 16
    digits = head + "".join(rng.choice("0123456789") for _ in range(length - 1 - len(head)))
    digits += luhn.calc_check_digit(digits)
    parts = [digits[n : n + 4] for n in range(0, len(digits), 4)]
    return rng.choice((digits, " ".join(parts), "-".join(parts)))


def _iban(rng: random.Random) -> str:
    country = rng.choice(tuple(BANKS))
    while True:
        account = "".join(rng.choice("0123456789") for _ in range(BANKS[country]))
        check = mod_97_10.calc_check_digits(account + country)
        text = f"{country}{check}{account}"
        if iban.is_valid(text):  # the country's own check digits too
            break
    return rng.choice((text, " ".join(text[n : n + 4] for n in range(0, len(text), 4))))


def personal_strings(seed: int = 0, each: int = 60) -> Iterator[tuple[str, str, str]]:
    """Kind, the personal part, and a text with it."""
    rng = random.Random(seed)
    for locale, names in FIRST.items():
        for _ in range(each):
            first, last, host = rng.choice(names), rng.choice(LAST), rng.choice(HOSTS)
            mail = rng.choice(
                (
                    f"{first}.{last}@{host}",
                    f"{first}{rng.randint(1, 99)}@{host}",
                    f"{first}+shop@{host}",
                )
            )
            yield "email", mail.replace("'", ""), f"<{mail.replace(chr(39), '')}>"
            phone = _phone(rng, locale)
            yield "phone", phone, rng.choice(SAYS[locale]).format(phone)
            yield "phone", phone, f'{{"name": "{first}", "phone": "{phone}"}}'
            card = _card(rng)
            yield "card", card, f"Card {card}, valid 12/29"
            street = rng.choice(STREETS[locale]).format(n=rng.randint(1, 180))
            yield "address", street, rng.choice(SENDS[locale]).format(street)
        for _ in range(each // 4):
            account = _iban(rng)
            yield "iban", account, f"IBAN {account}"


def _moment(rng: random.Random) -> datetime.datetime:
    return datetime.datetime(2015, 1, 1) + datetime.timedelta(
        seconds=rng.randint(0, 15 * 365 * 86_400), microseconds=rng.randint(0, 999_999)
    )


def _ean(rng: random.Random) -> str:
    digits = [rng.randint(0, 9) for _ in range(12)]
    check = -sum(d * (3 if n % 2 else 1) for n, d in enumerate(digits)) % 10
    return "".join(map(str, [*digits, check]))


MAKERS: tuple[Callable[[random.Random], str], ...] = (
    lambda r: _moment(r).isoformat(),
    lambda r: f"The time is {_moment(r).isoformat(timespec='milliseconds')}Z",
    lambda r: f"{_moment(r):%Y-%m-%d %H:%M:%S,}{r.randint(0, 999):03} INFO worker {r.randint(1, 9)}",
    lambda r: f"{_moment(r):%d.%m.%Y %H:%M:%S}",
    lambda r: f"{_moment(r):%m/%d/%Y %H:%M}",
    lambda r: f"{_moment(r):%Y%m%dT%H%M%S}Z",
    lambda r: f"{_moment(r):%Y%m%d-%H%M%S}",
    lambda r: f"am {_moment(r):%d.%m.%Y} um {_moment(r):%H:%M} Uhr",
    lambda r: f"le {_moment(r):%d/%m/%Y à %Hh%M}",
    lambda r: str(int(_moment(r).timestamp())),
    lambda r: f"ts={int(_moment(r).timestamp() * 1000)}",
    lambda r: f'{{"at": {_moment(r).timestamp():.6f}, "n": {r.randint(0, 10**6)}}}',
    lambda r: ".".join(str(r.randint(0, 255)) for _ in range(4)),
    lambda r: f"10.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(1, 254)}:{r.randint(1024, 65535)} GET /orders/{r.randint(10**6, 10**9)}",
    lambda r: f"{r.randint(2, 40)} place mats and {r.randint(2, 9)} square meters",
    lambda r: f"{r.randint(1, 12)} route planners, {r.randint(1, 9)} avenue signs, {r.randint(1, 9)} passage lights",
    lambda r: f"pip install foo@{r.randint(0, 9)}.{r.randint(0, 30)}.{r.randint(0, 9)}",
    lambda r: f"npm i @scope/name@^{r.randint(0, 9)}.{r.randint(0, 30)}.{r.randint(0, 9)}-beta.{r.randint(1, 9)}",
    lambda r: f"git clone git@github.com:org/repo{r.randint(1, 99)}.git",
    lambda r: _ean(r),
    lambda r: f"EAN {_ean(r)}, {r.randint(1, 20)} pieces",
    lambda r: f"SKU-{r.randint(10**4, 10**6)}-{r.choice('ABC')}{r.randint(10, 99)}",
    lambda r: f"order W{r.randint(10**4, 10**7)} of customer C{r.randint(1, 999)}",
    lambda r: f"order 2026-{r.randint(10**6, 10**7)}",
    lambda r: str(uuid.UUID(int=r.getrandbits(128))),
    lambda r: f"{r.getrandbits(160):040x}",
    lambda r: f"total {r.randint(1, 999)},{r.randint(0, 999):03}.{r.randint(0, 99):02} USD",
    lambda r: f"{r.randint(1, 9)} {r.randint(0, 999):03} {r.randint(0, 999):03},{r.randint(0, 99):02} €",
    lambda r: f"{r.randint(1, 9)}.{r.randint(0, 999):03}.{r.randint(0, 999):03},{r.randint(0, 99):02} EUR",
    lambda r: f"{r.uniform(-90, 90):.6f}, {r.uniform(-180, 180):.6f}",
    lambda r: f"[{', '.join(str(r.randint(0, 50_000)) for _ in range(8))}]",
    lambda r: f"size {r.randint(30, 60)} x {r.randint(30, 60)} x {r.randint(100, 900)} mm, {r.randint(100, 999)} g",
    lambda r: f"tracking 1Z{r.randint(10**14, 10**15)}",
    lambda r: f"parcel {r.randint(10**11, 10**12 - 1)}",
    lambda r: f"invoice {r.randint(10**7, 10**8 - 1)} line {r.randint(1, 9)}",
    lambda r: f"0x{r.getrandbits(32):08x} 0b{r.getrandbits(12):012b}",
    lambda r: f"{r.random():.16f}",
    lambda r: f"v{r.randint(1, 9)}.{r.randint(0, 20)}.{r.randint(0, 99)}+build.{r.randint(10**4, 10**8)}",
    lambda r: f"line {r.randint(1, 9000)}, column {r.randint(1, 200)}: expected {r.randint(1, 9)} found {r.randint(10, 99)}",
    lambda r: f"{r.randint(1, 28)} {r.choice(('May', 'Mai', 'mayo', 'mai', 'maio'))} 20{r.randint(10, 30)}, {r.randint(10, 23)}:{r.randint(10, 59)}",
)  # fmt: skip
SENTENCES = (
    "Where is my order? It should have arrived last Friday.", "Ich möchte meine Bestellung stornieren.",
    "Je voudrais un remboursement pour les deux articles.", "¿Puedo cambiar la dirección de envío?",
    "Quero devolver o artigo, a caixa está danificada.", "The place is nice, the square was full, the route is long.",
    "Die Straße ist gesperrt, der Platz ist voll.", "La rue est calme et la place est belle.",
    "Delivered items can be refunded for 30 days, at most 500.00.", "We have 12 in stock at 3 warehouses, 40 reserved.",
)  # fmt: skip


def harmless_strings(seed: int = 0, each: int = 40) -> Iterator[str]:
    """Texts without anybody's data."""
    rng = random.Random(seed)
    for make in MAKERS:
        for _ in range(each):
            yield make(rng)
    for sentence in SENTENCES:
        for _ in range(each):
            yield f"{sentence} ({rng.randint(1, 9999)})"
