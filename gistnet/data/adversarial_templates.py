"""The sentences that adversarial pairs are made of; `gistnet.data.adversarial` puts them together.

In a sentence, `{x}` is what differs between the two texts of a pair, and any other name in braces is a list of `WORDS`.
Within one family a name stands for one word throughout; a filler or connector draws its own.
"""

from typing import NamedTuple

FILLERS = (
    "The morning had been {weather}, and {few} {goods} stood drying beside the wall of the {place}.",
    "A {colour} {animal} slept under the bench while the {trade} swept the floor around it.",
    "Somebody had left the {goods} in a heap by the gate, and nobody had thought of putting them away.",
    "From the window one could see the {place}, and behind it the hills, {colour} in the evening light.",
    "The {trade} talked for a while about the {weather} weather and about the price of {goods}.",
    "There was a smell of soap and fresh paint, for the {place} had been cleaned in {month}.",
    "On the far side of the road the {trade} was unloading {few} {goods} from a {colour} cart.",
    "The children of the {trade} ran past with a {animal}, laughing and shouting to each other.",
    "Above the fireplace hung a picture of a {animal} in a {colour} frame, which everybody admired.",
    "It was a {weather} afternoon, and the bells of the {place} could be heard across the fields.",
    "Most people in the street knew the story already, though the {trade} told it better than anyone.",
    "An old {object} stood in the corner, covered with a {colour} cloth and a good deal of dust.",
    "The {trade} poured some tea, sat down near the {object}, and listened with great patience.",
    "Later the wind grew stronger, and the {goods} on the shelf began to rattle a little.",
    "The path to the {place} was muddy after the {weather} night, so everyone walked slowly.",
    "A {trade} from the next village had sent {few} {goods} and a friendly greeting.",
    "Behind the counter the {trade} was wrapping {goods} in {colour} paper, one after another.",
    "The {animal} in the yard looked up for a moment and then went on eating from its {colour} bowl.",
    "It was {month}, the days were {weather}, and work at the {place} went on until the evening.",
    "In the hall there were {few} {goods}, a {colour} coat, and a basket that belonged to the {trade}.",
    "Nobody paid attention to the {object}, which the {trade} had brought along that {weekday}.",
    "The {trade} remembered a similar {weekday} many years ago, when the {place} had just been built.",
    "Far away a {animal} could be heard, and then it was quiet again around the {place}.",
    "The {goods} from the market were heavy, and the {trade} put them down with a sigh.",
    "Some of the visitors stayed near the {place}, where the {trade} was selling {goods} and warm bread.",
    "The lamp gave a {colour} light, in which the {object} looked older than it was.",
    "A narrow stair led up to a room full of {goods}, where the {trade} kept a {animal}.",
    "The {place} was closed in {month}, as it was every year, and the square seemed empty.",
    "Half of the {goods} were new, and the others had been mended by the {trade} last {weekday}.",
    "The {trade} hummed a tune and polished the {object} until it shone like new.",
)

CONNECTORS = (
    "There is another version of this, which is told near the {place} and is almost the same.",
    "The notebook goes on with an entry that looks like a copy of another, but it should be read with care.",
    "Those who compare such records soon learn that one word can change everything that follows.",
    "A second hand has written the next part, in {colour} ink, on the back of the same sheet.",
    "On the following pages the {trade} returns to these events, and not every detail is as it was.",
    "What comes next was found in the {place} in {month}, between two other papers.",
    "The {trade} who collected these accounts put them side by side and left it to the reader to compare them.",
    "Here the story stops, and a similar one begins, as it was heard on a {weather} {weekday}.",
    "Several of these notes resemble each other so closely that the {trade} numbered them with a {colour} pencil.",
    "The next account comes from another year, though the words are much the same.",
)

# With these, a negation is said again before its outcome. SmolLM2-135M, reading the whole text, then prefers the right
# continuation in 9 of 10 cases; where only the outcome was there to tell ("..., so they turned back"), in 7.
OPENERS = (
    "As was said before,",
    "It is true that",
    "To say it once more,",
    "Let us keep in mind that",
    "The report repeats that",
    "In short,",
)


class Family(NamedTuple):
    """One kind of situation. The value in `key` decides the continuation; `setting` comes before it.

    `values` is what `{x}` may be: a range of numbers of equally many digits, the name of a list of `WORDS`, or the word
    that negates the key sentence. A negation has two outcomes, `{y}`: of the negated sentence, and of the other one.
    """

    setting: str
    key: str
    values: range | str
    continuation: str
    outcomes: tuple[str, str] = ("", "")


NUMBER_FAMILIES: tuple[Family, ...] = (
    Family(
        "The owner of the {place} wanted to know what was left in the store.",
        "The list on the door said that there were exactly {x} {goods} in the store.",
        range(12, 98),
        "According to the list on the door, there were {x} {goods} in the store, and the owner was content with that.",
    ),
    Family(
        "A guest arrived late at the hotel and asked the porter for a bed.",
        "The porter gave the guest the key to room {x}, the only one that was free.",
        range(112, 489),
        "The guest went upstairs with the key, found the door of room {x}, and went straight to bed.",
    ),
    Family(
        "Visitors of the {place} often ask how old the building is.",
        "In the year {x} the {place} was built, as the stone over the gate still tells.",
        range(1612, 1948),
        "The guide pointed at the stone and explained that the {place} was built in the year {x} by a rich family.",
    ),
    Family(
        "The teacher was looking for the story of the {animal} in a thick {colour} book.",
        "The table of contents said that the story of the {animal} began on page {x} of the book.",
        range(121, 396),
        "So the teacher opened the {colour} book on page {x} and began to read the story aloud.",
    ),
    Family(
        "The dealer had a {colour} {object} for sale, and a customer wanted to have it.",
        "For the {object} the dealer asked {x} dollars, and not a cent less than that.",
        range(23, 97),
        "After a long talk the customer agreed to pay {x} dollars for the {object} and carried it home.",
    ),
    Family(
        "There was a party for the {trade} on {weekday}, and the whole street was invited.",
        "The {trade} turned {x} years old that day, which surprised nearly all of the guests.",
        range(31, 89),
        "Nobody could believe that the {trade} was already {x} years old, and everybody wished the {trade} good luck.",
    ),
    Family(
        "The walkers were tired, and they still hoped to reach the {place} before night.",
        "A sign at the crossroads said that the {place} was {x} miles away.",
        range(11, 49),
        "It was bad news for the walkers that the {place} was still {x} miles away, and they sat down to rest.",
    ),
    Family(
        "The council had to decide on {weekday} whether the {place} should be rebuilt.",
        "When the votes were counted, the plan had received {x} votes in its favour.",
        range(101, 479),
        "The secretary wrote in the minutes that the plan had received {x} votes and had been accepted.",
    ),
    Family(
        "A stranger at the bus stop wanted to go to the {place}.",
        "The {trade} said that the bus with the number {x} was the only one going there.",
        range(12, 98),
        "The stranger thanked the {trade}, waited for the bus with the number {x}, and got in.",
    ),
    Family(
        "The {trade} kept the money for the {object} in an iron box with a lock.",
        "The secret number that opened the lock of the box was {x}, as the family knew.",
        range(213, 987),
        "To open the lock of the box, one had to enter the secret number {x} and then turn the handle.",
    ),
)

NAME_FAMILIES: tuple[Family, ...] = (
    Family(
        "The {goods} had been missing for a week, and everyone had searched for them.",
        "In the end it was {x} who found the {goods} behind the {place}.",
        "person",
        "The owner was delighted and thanked {x} for having found the {goods} after such a long time.",
    ),
    Family(
        "A letter in a {colour} envelope came to the {place} on {weekday}.",
        "The letter was signed by {x}, in small and careful handwriting.",
        "person",
        "The {trade} read the letter twice and then wrote an answer to {x} on the same day.",
    ),
    Family(
        "The {goods} were ready, and the driver asked where to take them.",
        "The {trade} told the driver to bring the {goods} to {x} without any delay.",
        "town",
        "So the driver brought the {goods} to {x}, where they were unloaded on {weekday}.",
    ),
    Family(
        "At the end of the pier lay a {colour} boat with a new sail.",
        "The boat was named {x}, after the daughter of the {trade} who had built it.",
        "person",
        "Along the coast everyone knew the boat named {x}, which went out with every tide.",
    ),
    Family(
        "After the death of the old {trade}, the lawyer read the will to the family.",
        "The will said that the {colour} {object} should go to {x}, and the house to the church.",
        "person",
        "As the will demanded, the lawyer gave the {colour} {object} to {x}, and the others got nothing.",
    ),
    Family(
        "The judges at the fair looked at every {object} that had been brought to them.",
        "They gave the first prize to {x}, whose {object} was the finest of all.",
        "surname",
        "In the newspaper one could read that the first prize had gone to {x} for the finest {object} at the fair.",
    ),
    Family(
        "The new {trade} spoke with an accent that nobody in the village knew.",
        "The {trade} had been born in {x} and had grown up there with an aunt.",
        "town",
        "When people asked about the accent, the {trade} told them about a childhood in {x} and about the aunt.",
    ),
    Family(
        "The {place} needed somebody to lead it, and the council met on {weekday}.",
        "The council chose {x} as the new head of the {place}, by a large majority.",
        "surname",
        "The next morning the new head of the {place}, {x}, was welcomed with flowers and a short speech.",
    ),
    Family(
        "The {trade} had to choose a name for the {colour} {animal} before the weekend.",
        "After some thought the {animal} was given the name {x}, which pleased the children.",
        "person",
        "From that day on, when they wanted the {animal} to come, the children called {x} as loudly as they could.",
    ),
    Family(
        "The famous {trade} had been travelling for months without any news.",
        "A postcard that came on {weekday} had a stamp and a picture from {x} on it.",
        "town",
        "The postcard made it clear that the {trade} was now in {x}, and that all was well.",
    ),
)

NEGATION_FAMILIES: tuple[Family, ...] = (
    Family(
        "The travellers came to the {place} late on {weekday}.",
        "The {place} was {x} open when they arrived there with all their {goods}.",
        "not",
        "{opener} the {place} was {x} open when they arrived, so they rested {y}.",
        ("outside", "inside"),
    ),
    Family(
        "A thief came to the house of the {trade} at night.",
        "The {trade} had {x} locked the door before going to bed.",
        "not",
        "{opener} the {trade} had {x} locked the door before going to bed, so the thief {y}.",
        ("got in", "stayed out"),
    ),
    Family(
        "The {trade} asked the council for permission to rebuild the {place}.",
        "The council has {x} approved the plan for the {place}, as the letter says.",
        "not",
        "{opener} the council has {x} approved the plan for the {place}, so the work {y}.",
        ("must stop", "may start"),
    ),
    Family(
        "The walkers reached the river, and the {trade} looked at the old bridge.",
        "The {trade} told them that the bridge was {x} safe, and they trusted that judgement.",
        "not",
        "{opener} the bridge was {x} safe, and {y} used it.",
        ("nobody", "everybody"),
    ),
    Family(
        "On {weekday} a visitor knocked at the door of the {trade}.",
        "The {trade} was {x} at home that morning, as the neighbours can confirm.",
        "not",
        "{opener} the {trade} was {x} at home that morning, so the house was {y}.",
        ("empty", "open"),
    ),
    Family(
        "The {animal} was ill, and the doctor gave it a {colour} medicine.",
        "The medicine did {x} help the {animal}, as one could see the next day.",
        "not",
        "{opener} the medicine did {x} help the {animal}, so the {animal} {y}.",
        ("remained ill", "became healthy"),
    ),
    Family(
        "The {trade} was expecting a letter with money in it.",
        "By {weekday} the letter had {x} arrived at the {place}, where it was expected.",
        "not",
        "{opener} by {weekday} the letter had {x} arrived at the {place}, so the money was {y}.",
        ("still missing", "finally there"),
    ),
    Family(
        "A collector offered a large sum for the {colour} {object}.",
        "The {trade} was {x} willing to sell the {object}, whatever the family thought.",
        "not",
        "{opener} the {trade} was {x} willing to sell the {object}, so the offer was {y}.",
        ("refused", "accepted"),
    ),
    Family(
        "The {place} has a garden, which needs much care in {month}.",
        "The {trade} had {x} watered the garden, as everybody could see in the morning.",
        "not",
        "{opener} the {trade} had {x} watered the garden, so the ground was {y}.",
        ("dry", "wet"),
    ),
    Family(
        "The {object} had been in the workshop of the {trade} for a week.",
        "The {trade} had {x} repaired the {object} by {weekday}, as the customer was to find out.",
        "not",
        "{opener} the {trade} had {x} repaired the {object} by {weekday}, and the customer was {y}.",
        ("angry", "happy"),
    ),
    Family(
        "The police asked the {trade} about the stranger in the {colour} coat.",
        "The {trade} had {x} seen the stranger before, and said so at once.",
        "never",
        "{opener} the {trade} had {x} seen the stranger before, so the name was {y}.",
        ("unknown", "known"),
    ),
    Family(
        "The {trade} went to the market with a list of things to get.",
        "The {trade} did {x} buy the {goods} there, as the receipt in the {colour} bag shows.",
        "not",
        "{opener} the {trade} did {x} buy the {goods} there, so the bag was {y}.",
        ("empty", "full"),
    ),
    Family(
        "The {trade} was waiting for a friend at the {place}.",
        "The friend did {x} come to the {place} that evening, as the {trade} told us later.",
        "not",
        "{opener} the friend did {x} come to the {place} that evening, and the {trade} was {y}.",
        ("sad", "happy"),
    ),
)
