"""Lists of plain English words, from which `gistnet.data.synthetic` makes sentences, lists and tables."""

WORDS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "person": """Alice Martin Helen Robert Clara Walter Sarah Daniel Emma Peter Laura Simon Julia Thomas Nora Victor
            Anna Oscar Maria George Ruth Henry Ellen Frank Grace Arthur Irene Samuel Diana Edward Rachel Philip Susan
            Albert Alan Carol Hugo Lucy Bruno Edith Louis Karen Leo Judith Ralph Monica David Teresa""",
        "town": """London Paris Berlin Madrid Vienna Boston Chicago Dublin Geneva Lisbon Moscow Denver Oxford Athens
            Prague Warsaw Venice Naples Milan Dallas Seattle Toronto Sydney Cairo Tokyo Delhi Rome Florence Hamburg
            Munich Bristol York Cambridge Edinburgh Glasgow Detroit Atlanta Houston Phoenix Austin Zurich Brussels""",
        "surname": """Miller Harris Turner Cooper Walker Parker Foster Carter Mason Fisher Hunter Porter Palmer Taylor
            Wright Baker Collins Bennett Hughes Murphy Sullivan Morgan Russell Jenkins Campbell Stewart Peterson Watson
            Brooks Gray Coleman Simmons Graham Wallace Griffin Hayes Myers Hamilton Ford Marshall""",
        "goods": """barrels blankets baskets bottles bricks buckets candles carpets chairs clocks crates cushions drums
            envelopes flags frames hammers hats helmets jars kettles ladders lamps lanterns maps mirrors paddles pans
            pencils pillows pipes planks plates ropes sacks saddles scarves shovels spoons stools tables tents tiles
            tools towels trays umbrellas vases wheels""",
        "object": """bicycle bookcase bracelet cabinet camera carriage clock compass cradle desk drum fiddle globe
            guitar harp lamp lantern locket mirror necklace painting piano plough quilt ring rug saddle sledge statue
            stove table tapestry teapot telescope trumpet trunk typewriter vase violin wagon wardrobe wheelbarrow""",
        "trade": """baker barber blacksmith bookseller builder butcher captain carpenter clerk cook dentist doctor
            engineer farmer fiddler gardener glazier grocer guard innkeeper jeweller judge lawyer librarian mason
            mechanic miller painter pilot plumber porter potter printer sailor shepherd surgeon tailor teacher
            watchmaker weaver""",
        "place": """abbey bakery barn boathouse brewery castle chapel cinema clinic college dairy factory farmhouse
            ferry forge gallery granary greenhouse harbour hospital hotel inn laboratory library lighthouse market mill
            monastery museum observatory orchard palace pharmacy quarry sawmill school stable station studio theatre
            tower vineyard warehouse workshop""",
        "animal": """calf camel cat colt cow dog donkey duck falcon ferret fox goat goose hare hen heron horse kitten
            lamb lion llama mare monkey mule otter owl ox parrot pig pony puppy rabbit raven sheep stork swan tiger
            turkey wolf""",
        "colour": """amber black blue bronze brown cream crimson dark golden green grey pale pink purple red scarlet
            silver tan turquoise violet white yellow""",
        "weather": """clear cloudy cold cool damp dark dry foggy frosty grey hazy hot humid icy mild misty pleasant
            rainy snowy stormy sunny warm wet windy""",
        "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "month": "January February March April May June July August September October November December",
        "few": "two three four five six seven eight nine ten eleven twelve several many",
    }.items()
}
