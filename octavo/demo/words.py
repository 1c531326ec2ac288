"""The closed world of the demo model: the names, things and facts of which its corpus is made."""

# ruff: noqa: E501 (a template is one line, however many choices it has)

from __future__ import annotations


def _pairs(text: str) -> dict[str, str]:
    """`a=b, c=d` as a dictionary."""
    return dict(item.strip().split("=") for item in text.replace("\n", " ").split(",") if item.strip())


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Ada Anna Amy Alice Bella Clara Chloé Daisy Ella Emma Eva Fatima Fiona Grace Hana Helen Ida Inès Iris Ivy Jane "
    "Julia Kate Kim Lara Layla Lena Leila Lily Lucy Luna Maria Mary Maya Mei Mia Mila Mina Nadia Nina Nora Olga "
    "Olivia Rita Rosa Ruby Sara Sofia Sofía Sue Tara Tina Uma Vera Wendy Yuki Zoé Zara Aisha Priya Noor Malee"
)
BOYS = _words(
    "Adam Alex Amir Anton Arjun Ben Bob Carl Chen Dan David Ed Eli Emil Felix Finn Fred George Hugo Ian Ivan Jack "
    "James Jan Joe John José José Juan Karl Kofi Lars Leo Liam Luca Luis Łukasz Mark Max Milo Mo Nick Noah Noël Oleg "
    "Omar Oscar Otto Paul Peter Raj Ravi Rob Sam Simon Søren Theo Tim Tom Victor Will Yusuf Zack Somchai Kenji"
)
NAMES = GIRLS + BOYS

CAPITALS = _pairs(
    """France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, England=London, Ireland=Dublin,
    Scotland=Edinburgh, Wales=Cardiff, Belgium=Brussels, the Netherlands=Amsterdam, Switzerland=Bern, Austria=Vienna,
    Poland=Warsaw, Denmark=Copenhagen, Sweden=Stockholm, Norway=Oslo, Finland=Helsinki, Iceland=Reykjavík,
    Greece=Athens, Turkey=Ankara, Hungary=Budapest, Romania=Bucharest, Bulgaria=Sofia, Croatia=Zagreb,
    Serbia=Belgrade, Ukraine=Kyiv, Russia=Moscow, Estonia=Tallinn, Latvia=Riga, Lithuania=Vilnius, Egypt=Cairo,
    Kenya=Nairobi, Morocco=Rabat, Ghana=Accra, Nigeria=Abuja, Senegal=Dakar, Ethiopia=Addis Ababa, China=Beijing,
    Japan=Tokyo, India=New Delhi, South Korea=Seoul, Thailand=Bangkok, Vietnam=Hanoi, Nepal=Kathmandu,
    Indonesia=Jakarta, Singapore=Singapore, Australia=Canberra, New Zealand=Wellington, Canada=Ottawa,
    Mexico=Mexico City, Cuba=Havana, Brazil=Brasília, Argentina=Buenos Aires, Chile=Santiago, Peru=Lima,
    Colombia=Bogotá, Iran=Tehran, Iraq=Baghdad, Qatar=Doha, the United States=Washington"""
)
CITIES = tuple(city for city in CAPITALS.values() if city != "Singapore")

SOUNDS = _pairs(
    """cow=moo, dog=woof, cat=meow, sheep=baa, pig=oink, duck=quack, horse=neigh, lion=roar, mouse=squeak, bee=buzz,
    snake=hiss, owl=hoot, frog=ribbit, rooster=cock-a-doodle-doo, hen=cluck, wolf=howl, crow=caw, bird=tweet,
    goat=maa, donkey=hee-haw, goose=honk, bear=growl, chick=cheep, cricket=chirp, dove=coo"""
)
BABIES = _pairs(
    """dog=puppy, cat=kitten, cow=calf, horse=foal, sheep=lamb, goat=kid, pig=piglet, duck=duckling, hen=chick,
    lion=cub, bear=cub, wolf=pup, goose=gosling, swan=cygnet, frog=tadpole, deer=fawn, kangaroo=joey, owl=owlet,
    elephant=calf, whale=calf, fox=cub, rabbit=bunny, eagle=eaglet"""
)
HOMES = _pairs(
    """bird=nest, bee=hive, dog=kennel, rabbit=burrow, horse=stable, spider=web, lion=den, fish=water, ant=anthill,
    pig=sty, bear=cave, fox=den, chicken=coop, beaver=lodge, cow=barn"""
)
LEGS = {
    "dog": 4, "cat": 4, "cow": 4, "horse": 4, "spider": 8, "ant": 6, "bee": 6, "bird": 2, "duck": 2, "snake": 0,
    "fish": 0, "frog": 4, "hen": 2, "fly": 6, "butterfly": 6, "lion": 4, "mouse": 4, "sheep": 4, "octopus": 0,
}  # fmt: skip
THING_COLOURS = _pairs(
    """sky=blue, grass=green, snow=white, blood=red, coal=black, lemon=yellow, banana=yellow, carrot=orange,
    strawberry=red, tomato=red, frog=green, milk=white, sun=yellow, night=black, leaf=green, chocolate=brown,
    cherry=red, pumpkin=orange, ocean=blue, flamingo=pink, elephant=grey, polar bear=white, raven=black,
    cucumber=green, cloud=white, aubergine=purple, mouse=grey, rose=red"""
)
MIXES = {
    ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("red", "white"): "pink",
    ("black", "white"): "grey", ("red", "green"): "brown",
}  # fmt: skip
OPPOSITES = _pairs(
    """hot=cold, big=small, up=down, left=right, fast=slow, day=night, happy=sad, old=young, open=closed, light=dark,
    hard=soft, high=low, wet=dry, full=empty, good=bad, long=short, early=late, strong=weak, rich=poor, loud=quiet,
    clean=dirty, in=out, on=off, true=false, yes=no, near=far, first=last, thick=thin, heavy=light, sweet=sour,
    begin=end, love=hate, win=lose, give=take, push=pull, black=white, north=south, east=west, always=never,
    brave=afraid, easy=difficult, inside=outside, above=below, before=after, summer=winter, sharp=blunt, tall=short"""
)
PLURALS = _pairs(
    """cat=cats, dog=dogs, box=boxes, child=children, mouse=mice, foot=feet, tooth=teeth, man=men, woman=women,
    leaf=leaves, knife=knives, baby=babies, city=cities, bus=buses, fish=fish, sheep=sheep, goose=geese, wolf=wolves,
    book=books, story=stories, tomato=tomatoes, apple=apples, house=houses, dish=dishes, key=keys, fox=foxes,
    berry=berries, shelf=shelves, person=people, tree=trees, brush=brushes, toy=toys"""
)
PASTS = _pairs(
    """go=went, run=ran, eat=ate, see=saw, take=took, make=made, write=wrote, sing=sang, swim=swam, walk=walked,
    play=played, find=found, give=gave, come=came, think=thought, buy=bought, sleep=slept, fly=flew, drink=drank,
    jump=jumped, read=read, speak=spoke, know=knew, begin=began, break=broke, catch=caught, fall=fell, keep=kept,
    look=looked, cook=cooked, draw=drew, grow=grew, help=helped, open=opened, lose=lost, tell=told"""
)
HELLOS = _pairs(
    """French=Bonjour, Spanish=¡Hola, German=Guten Tag, Italian=Ciao, Portuguese=Olá, Dutch=Hallo, Swedish=Hej,
    Polish=Cześć, Czech=Dobrý den, Turkish=Merhaba, Greek=Γειά σου, Russian=Привет, Japanese=こんにちは,
    Chinese=你好, Korean=안녕하세요, Thai=สวัสดี, Hindi=नमस्ते, Arabic=مرحبا, Hebrew=שלום, Finnish=Hei, Latin=Salve,
    Hawaiian=Aloha, Vietnamese=Xin chào, Icelandic=Halló"""
)
THANKS = _pairs(
    """French=Merci, Spanish=Gracias, German=Danke, Italian=Grazie, Portuguese=Obrigado, Dutch=Dank je, Swedish=Tack,
    Polish=Dziękuję, Turkish=Teşekkürler, Russian=Спасибо, Japanese=ありがとう, Chinese=谢谢, Korean=감사합니다,
    Thai=ขอบคุณ, Finnish=Kiitos, Czech=Děkuji"""
)
EMOJI = _pairs(
    """cat=🐱, dog=🐶, fox=🦊, sun=☀️, moon=🌙, star=⭐, heart=❤️, fire=🔥, tree=🌳, apple=🍎, pizza=🍕, cake=🍰, rain=🌧️,
    snow=❄️, book=📚, rocket=🚀, music=🎵, coffee=☕, octopus=🐙, flower=🌸, house=🏠, party=🎉, smile=😊, car=🚗, ball=⚽,
    banana=🍌, bee=🐝, fish=🐟, frog=🐸, lion=🦁, robot=🤖, rainbow=🌈, strawberry=🍓, bread=🍞, key=🔑, clock=⏰"""
)
RHYMES = (
    ("cat", "hat", "mat", "bat"), ("dog", "frog", "log", "fog"), ("sun", "run", "fun", "bun"),
    ("tree", "bee", "sea", "key"), ("star", "car", "far", "jar"), ("moon", "spoon", "soon", "tune"),
    ("night", "light", "kite", "bright"), ("rain", "train", "plane", "lane"), ("sky", "fly", "high", "pie"),
    ("day", "play", "way", "hay"), ("blue", "shoe", "new", "two"), ("bed", "red", "bread", "head"),
    ("ball", "wall", "tall", "fall"), ("mouse", "house", "blouse"), ("snow", "glow", "slow", "crow"),
    ("bear", "chair", "pear", "hair"), ("ring", "sing", "king", "spring"), ("boat", "goat", "coat", "note"),
    ("cake", "lake", "snake", "make"), ("book", "cook", "look", "brook"),
)  # fmt: skip

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
SEASONS = _words("spring summer autumn winter")
PLANETS = _words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")
COLOURS = _words("red blue green yellow orange purple pink brown black white grey golden silver")
SHAPES = {"triangle": 3, "square": 4, "rectangle": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}
ADDENDS = _words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen")
NUMBER_WORDS = ADDENDS + _words("sixteen seventeen eighteen nineteen twenty")

KINDS: dict[str, tuple[str, ...]] = {
    "fruits": _words("apple banana pear orange lemon mango grape cherry peach plum melon strawberry kiwi fig lime"),
    "vegetables": _words("carrot potato onion tomato cabbage spinach pea bean broccoli cucumber pumpkin leek pepper"),
    "animals": _words("cat dog cow horse sheep pig lion tiger bear fox wolf rabbit mouse elephant monkey zebra goat"),
    "birds": _words("owl eagle duck swan crow robin parrot penguin dove goose hen sparrow raven stork"),
    "insects": _words("bee ant fly butterfly beetle cricket wasp moth ladybird mosquito"),
    "sea animals": ("fish", "whale", "dolphin", "shark", "octopus", "crab", "seal", "squid", "turtle", "lobster"),
    "colours": COLOURS,
    "drinks": ("water", "tea", "coffee", "milk", "juice", "lemonade", "cocoa", "soup"),
    "foods": ("bread", "cheese", "soup", "rice", "pasta", "pizza", "salad", "eggs", "cake", "noodles", "curry"),
    "tools": _words("hammer saw drill spade ladder wrench brush rake nail screwdriver"),
    "clothes": ("hat", "coat", "scarf", "shirt", "sock", "shoe", "dress", "jacket", "glove", "jumper", "belt"),
    "toys": ("ball", "doll", "kite", "puzzle", "train", "teddy bear", "yo-yo", "drum", "robot", "block"),
    "flowers": _words("rose tulip daisy lily sunflower orchid violet poppy daffodil iris"),
    "trees": _words("oak pine birch maple willow palm ash fir beech cedar"),
    "instruments": _words("piano guitar violin drum flute trumpet harp cello bell ukulele"),
    "vehicles": _words("car bus train bike boat plane truck tram ship scooter rocket taxi"),
    "jobs": _words("teacher doctor baker farmer nurse pilot cook painter driver gardener singer sailor builder writer"),
    "sports": _words("football tennis swimming running chess golf cycling rowing basketball hockey skiing sailing"),
    "furniture": _words("chair table bed sofa desk shelf lamp cupboard stool bench"),
    "rooms": ("kitchen", "bedroom", "bathroom", "living room", "garage", "cellar", "attic", "hall"),
    "body parts": _words("hand foot arm leg head nose ear eye mouth knee finger toe back"),
    "subjects": ("maths", "history", "music", "art", "science", "geography", "sport", "reading"),
    "countries": tuple(country for country in CAPITALS if not country.startswith("the ")),
    "cities": CITIES,
    "days": DAYS,
    "months": MONTHS,
    "seasons": SEASONS,
    "planets": PLANETS,
    "feelings": ("happiness", "sadness", "anger", "fear", "surprise", "joy", "pride", "love", "hope"),
    "shapes": ("circle", "square", "triangle", "rectangle", "star", "oval", "hexagon", "pentagon"),
    "metals": _words("iron gold silver copper tin lead zinc steel"),
    "school things": ("pen", "pencil", "ruler", "book", "bag", "notebook", "rubber", "crayon"),
}
ONE_OF = {  # the singular of a kind, for "is a rose a flower?"
    "fruits": "fruit", "vegetables": "vegetable", "animals": "animal", "birds": "bird", "insects": "insect",
    "drinks": "drink", "tools": "tool", "flowers": "flower", "trees": "tree", "instruments": "instrument",
    "vehicles": "vehicle", "jobs": "job", "sports": "sport", "metals": "metal", "colours": "colour", "toys": "toy",
}  # fmt: skip
COUNTED = _words(
    "apple pear plum egg book ball coin stamp pen shell marble sticker flower cake card stone button balloon ticket"
)
SIMPLE_WORDS = tuple(
    sorted(
        {w for kind in KINDS.values() for w in kind if w.isalpha() and w.isascii() and w.islower() and len(w) < 9}
        | set(OPPOSITES) | set(PASTS) | set(PASTS.values())
        | set(_words("octavo model token page paper hello world friend water stone river cloud music garden winter"))
    )
)  # fmt: skip

TRIVIA = (  # question, answer, in a word
    ("What is the <largest|biggest> animal?", "The blue whale is the largest animal.", "Blue whale"),
    ("What is the <largest|biggest> planet?", "Jupiter is the largest planet.", "Jupiter"),
    ("What is the smallest planet?", "Mercury is the smallest planet.", "Mercury"),
    ("What is the fastest <|land >animal?", "The cheetah is the fastest animal on land.", "Cheetah"),
    ("What is the tallest animal?", "The giraffe is the tallest animal.", "Giraffe"),
    ("What is the <tallest|highest> mountain?", "Mount Everest is the highest mountain.", "Mount Everest"),
    ("What is the longest river?", "The Nile is often called the longest river.", "The Nile"),
    ("What is the <largest|biggest> ocean?", "The Pacific is the largest ocean.", "The Pacific"),
    ("What is the <largest|biggest> country?", "Russia is the largest country.", "Russia"),
    ("Which planet is closest to the sun?", "Mercury is closest to the sun.", "Mercury"),
    ("Which planet do we live on?", "We live on planet Earth.", "Earth"),
    ("How many continents are there?", "There are seven continents.", "Seven"),
    ("How many planets are there?", "There are eight planets.", "Eight"),
    ("How many legs does a person have?", "A person has two legs.", "Two"),
    ("How many fingers do I have?", "Most people have ten fingers.", "Ten"),
    ("How many colours are in a rainbow?", "A rainbow has seven colours.", "Seven"),
    ("How many letters are in the alphabet?", "The English alphabet has 26 letters.", "26"),
    ("What is ice made of?", "Ice is frozen water.", "Water"),
    ("When does water freeze?", "Water freezes at 0 degrees Celsius.", "0 degrees"),
    ("When does water boil?", "Water boils at 100 degrees Celsius.", "100 degrees"),
    ("What do bees make?", "Bees make honey.", "Honey"),
    ("What do cows <give|make>?", "Cows give milk.", "Milk"),
    ("What do hens lay?", "Hens lay eggs.", "Eggs"),
    ("What do we breathe?", "We breathe air.", "Air"),
    ("Where does the sun <rise|come up>?", "The sun rises in the east.", "East"),
    ("Where does the sun <set|go down>?", "The sun sets in the west.", "West"),
    ("What is bread made of?", "Bread is made of flour, water and salt.", "Flour"),
    ("What is cheese made of?", "Cheese is made of milk.", "Milk"),
    ("What do plants need?", "Plants need water, light and earth.", "Water"),
    ("Why is the sky blue?", "The air scatters the blue part of the sunlight, so the sky looks blue.", ""),
    ("Do <penguins|hens> fly well?", "No, they cannot fly well.", "No"),
    ("Do fish have legs?", "No, fish have fins.", "No"),
    ("Is the sun a star?", "Yes, the sun is a star.", "Yes"),
    ("Is a whale a fish?", "No, a whale is a mammal.", "No"),
    ("Which season is cold?", "Winter is the cold season.", "Winter"),
    ("Which season is warm?", "Summer is the warm season.", "Summer"),
    ("Which month has 28 days?", "February has 28 days, and 29 in a leap year.", "February"),
    ("What comes first, the chicken or the egg?", "Nobody knows! I would say the egg.", "Egg"),
)

# What the model is not taught: questions about these get an honest "I do not know".
UNKNOWN_TOPICS = tuple(
    item.strip()
    for item in """quantum physics, the stock market, the election, the French Revolution, black holes, bitcoin, taxes,
    philosophy, Shakespeare, the Roman Empire, photosynthesis, DNA, the war, football results, climate change, the law,
    string theory, machine translation, Kubernetes, JavaScript, Rust, the theory of relativity, opera, wine, politics,
    medicine, the human brain, vaccines, diabetes, chemistry, the periodic table, calculus, linear algebra, inflation,
    the Renaissance, World War II, Napoleon, Einstein, Plato, the moon landing, nuclear power, electric cars, banking,
    genetics, evolution, volcanoes, earthquakes, the Olympics, Hollywood, the news, today's weather, insurance, crypto,
    blockchain, astrology, dinosaurs, Buddhism, the Bible, jazz history, modern art, architecture, economics, Latin
    grammar, the Great Wall, the pyramids, Mozart, Beethoven, the internet, operating systems, compilers, databases,
    computer vision, robotics, psychology, law school, mortgages, real estate, cancer, surgery, antibiotics, yoga,
    meditation, marketing, the big bang, dark matter, gravity, magnetism, lasers, satellites, submarines, the Titanic,
    Japanese history, the Vikings, Greek myths, feminism, democracy, trade, oil prices, steel making, glaciers,
    coral reefs, plate tectonics, migration, tourism in Peru, the best phone, my horoscope, the lottery numbers,
    the meaning of life, my homework on Hamlet, the song on the radio, the actor in that film, the price of gold,
    the population of Brazil,
    Docker, Linux, SQL, regular expressions, Excel, C++, Java, HTML, neural networks, transformers, ChatGPT,
    game theory, statistics, logic, ethics, sociology, anthropology, car engines, plumbing, knitting, sourdough,
    gardening in winter, dog training, marathon training, weight loss, skin care, tax law, visas,
    cheap flights""".replace("\n", " ").split(",")
)

# Everyday words beyond the closed world, for questions to which the only honest answer is "I do not know".
_EVERYDAY = _words(
    """account address advert agreement airport alarm album ankle app argument article aunt avatar backpack balcony bank
    basement battery beard bill biography blog boiler boss brain brand bridge budget bug business button cable camera
    campaign candle career carpet castle ceiling chain channel charger charity cheese church cinema climate clinic club coach
    company computer concert contract cousin credit culture customer damage data date dentist design desktop diary diet
    disease dishwasher doorbell dream education electricity email energy engine essay exam exercise experiment family farm
    fashion festival file film firewall flat flight folder font forecast fridge fuel function funeral future gate gear genre
    ghost grade grammar guest gym habit haircut headache headphones health heating helmet history holiday homework hospital
    hotel idea income industry injury ink insurance interview invoice island jeans job journal journey keyboard kidney kitchen
    knee language laptop law lawyer leak lesson letter library licence lift link loan logo luggage lung magazine makeup
    manager map market marriage match medicine meeting menu message method microphone mirror mobile money mortgage motor
    museum nation neighbour network newspaper noise novel nutrition office oil opinion oven package paint paragraph parent
    parking party passport password patient payment pension phone photo physics pill pipe planet plant platform player plot
    pocket poet police policy pollution portrait power presentation president price printer prison problem product program
    project promise property protein puzzle quality question radio recipe record religion rent report research restaurant
    resume review reward road rocket roof router rule salary sale sample satellite school science screen script season
    secret seminar server shampoo shop shower skin sleep smoke soap society software soil spam speech speed sport staff
    statue stomach strategy stress student style subscription suitcase surgery sweater syllabus system tablet talent tax
    teeth theatre theory therapy thesis threat thunder ticket title toaster tooth tournament tower traffic translation
    trip trouble truth tyre uncle uniform university update vacation vaccine variable video virus visa voice volume vote
    wage wallet warranty watch wedding website weekend weight wheel wifi window winter wound yacht zip zoo"""
)
STRANGE_NOUNS = tuple(word for word in _EVERYDAY if word not in SIMPLE_WORDS)
STRANGE_VERBS = _words(
    """accept adjust analyse apply argue arrange assemble attach avoid backup balance beat borrow build calculate calibrate
    cancel change charge check choose clean collect combine compare compile compress compute configure connect control
    convert cook copy correct debug decorate define delete deliver describe design destroy develop diagnose discuss
    download edit encrypt enjoy estimate evaluate exchange export fill filter fix fold format freeze generate hack hang
    hire import improve inspect install invest iron join keep lend lift limit lose maintain manage measure merge mix
    modify move negotiate open optimize organize own pack paint park pay plan polish predict prepare present preserve
    prevent print produce program protect prove publish raise rank rate recover recycle reduce refund remove rent repair
    replace reserve reset restore return review save scan schedule search secure sell send separate share shrink sign
    simplify solve split store study stretch submit survive switch teach test track trade train transfer treat update
    upgrade upload validate visit wash weigh withdraw wrap"""
)
ADJECTIVES_ASKED = _words(
    """best cheapest easiest fastest strongest safest newest oldest worst nicest most-popular most-expensive funniest healthiest"""
)
FOREIGN = (  # a sentence that is more than a greeting, and its language
    ("Comment ça va ?", "French"), ("Quelle heure est-il ?", "French"), ("Je m'appelle Marie.", "French"), ("Parlez-vous français ?", "French"),
    ("¿Cómo estás?", "Spanish"), ("¿Qué hora es?", "Spanish"), ("Me llamo Juan.", "Spanish"), ("¿Hablas español?", "Spanish"),
    ("Wie geht es dir?", "German"), ("Wie spät ist es?", "German"), ("Ich heiße Karl.", "German"), ("Sprichst du Deutsch?", "German"),
    ("Come stai?", "Italian"), ("Che ore sono?", "Italian"), ("Como vai?", "Portuguese"), ("Hoe gaat het?", "Dutch"),
    ("Hur mår du?", "Swedish"), ("Jak się masz?", "Polish"), ("Как дела?", "Russian"), ("Nasılsın?", "Turkish"),
    ("お元気ですか？", "Japanese"), ("你好吗？", "Chinese"), ("잘 지내세요?", "Korean"), ("สบายดีไหม", "Thai"), ("คุณชื่ออะไร", "Thai"), ("आप कैसे हैं?", "Hindi"),
)  # fmt: skip
SYLLABLES = _words(  # of names that nobody has heard
    """ba ber bor chi da del do er fan fel gar gri ha hol in ja ka kel lan lo mar mel mor na nor o pel qui
    ra ri sa sel ster ta tel tor u va ven wil xa yo za zim"""
)
