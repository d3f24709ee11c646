//! Who posts in the demo, and what: made-up people on reserved domains, in many languages and scripts.

/// Someone who posts.
pub struct Person {
    pub name: &'static str,
    /// Empty: local.
    pub domain: &'static str,
    pub display: &'static str,
    pub language: &'static str,
    pub note: &'static str,
}

const fn person(
    name: &'static str,
    domain: &'static str,
    display: &'static str,
    language: &'static str,
    note: &'static str,
) -> Person {
    Person { name, domain, display, language, note }
}

/// The first ones are the accounts of the directory, in its order.
pub const PEOPLE: &[Person] = &[
    person("alice", "", "Alice 🌊", "en", "Harbour pilot. Tide tables, seabirds, far too much coffee."),
    person("bob", "", "Bob", "en", "Builds boats that float, mostly. He/him."),
    person(
        "carol",
        "",
        "Carol Méndez",
        "es",
        "Oceanógrafa y lectora. Hablo de corrientes, de libros y de gatos.",
    ),
    person("dave", "", "dave", "en", "Lurking since 2017."),
    person(
        "lighthouse",
        "",
        "The Lighthouse :bot:",
        "en",
        "Automated. I say when the light goes on and what the tide does.",
    ),
    person("wiebke", "", "Wiebke Petersen", "de", "Wattführerin. Ich weiß, wann ihr zurückgehen müsst."),
    person(
        "henk",
        "polder.example",
        "Henk van der Meer",
        "nl",
        "Dijkwacht, fietser, bakker van te veel stroopwafels.",
    ),
    person(
        "maelle",
        "bretagne.example",
        "Maëlle ⛵",
        "fr",
        "Je navigue, je jardine, je râle un peu. Photos de marées.",
    ),
    person("hokusai_fan", "nami.example", "波の人", "ja", "海と写真と猫。毎朝五時に港まで散歩しています。"),
    person("minseo", "bada.example", "민서", "ko", "부산에서 바다를 봅니다. 요리와 자전거를 좋아해요."),
    person("giulia", "laguna.example", "Giulia 🦐", "it", "Veneziana. Acqua alta, cicchetti e biblioteche."),
    person("joana", "ribeira.example", "Joana Tavares", "pt", "Biologia marinha, sardinhas e fado. Porto."),
    person("oleksandra", "lyman.example", "Олександра", "uk", "Пишу про море, птахів і старі карти."),
    person("tomek", "zatoka.example", "Tomek", "pl", "Kajaki, programowanie i dużo herbaty."),
    person("ploy", "talay.example", "พลอย", "th", "ชอบทะเล กาแฟ และหนังสือเก่า"),
    person("meera", "sagar.example", "मीरा", "hi", "समुद्र, संगीत और गरम चाय। पुणे से।"),
    person("noor", "khaleej.example", "نور", "ar", "أحب البحر والقهوة والصور القديمة."),
    person("lin", "haibin.example", "林海", "zh", "住在海边，写代码，也写诗。"),
    person(
        "sindre",
        "fjord.example",
        "Sindre",
        "no",
        "Fisker, gitarist, pappa. Regn er bare flytende solskinn.",
    ),
    person("elif", "bogaz.example", "Elif Deniz", "tr", "Vapur, simit, martılar. Fotoğraf çekiyorum."),
];

/// A post: language, text (`#tag`, blank line for a new paragraph), content warning, what comes with it.
pub struct Post {
    pub language: &'static str,
    pub text: &'static str,
    pub warning: &'static str,
    pub with: With,
}

/// What comes with a post.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum With {
    Nothing,
    /// That many pictures, described so.
    Pictures(u8, &'static str),
    /// A preview of a linked page: title and description.
    Card(&'static str, &'static str),
    /// A poll's options.
    Poll(&'static [&'static str]),
}

const fn post(language: &'static str, text: &'static str, with: With) -> Post {
    Post { language, text, warning: "", with }
}

const fn warned(language: &'static str, warning: &'static str, text: &'static str, with: With) -> Post {
    Post { language, text, warning, with }
}

use With::{Card, Nothing, Pictures, Poll};

pub const POSTS: &[Post] = &[
    post(
        "en",
        "High water at 14:32 today, 5.1 metres. Bring your boots if you cross the causeway. #tides #harbour",
        Nothing,
    ),
    post(
        "en",
        "The herons are back on the old breakwater. Counted eleven this morning, which is three more than last year. #birds #photography",
        Pictures(2, "Grey herons standing in a row on a stone breakwater at sunrise, mist over the water"),
    ),
    post(
        "en",
        "Finished the hull. It floats. I am as surprised as anyone.\n\nNext: the mast, and finding out where I put the good saw. #boatbuilding",
        Pictures(1, "A small wooden boat afloat beside a jetty, no mast yet, a person waving both arms"),
    ),
    post(
        "en",
        "Question for the sailors: what do you do with an hour of flat calm?",
        Poll(&["Swim", "Sleep", "Mend things", "Swear at the sky"]),
    ),
    post(
        "en",
        "Reading about how harbours kept time before radio: a ball dropped from a mast at one o'clock, and every ship in sight set its chronometer by it. #history",
        Card(
            "The ball that set the clocks",
            "How a falling ball gave every ship in the harbour the time, and what happened on the day it stuck.",
        ),
    ),
    post("en", "small joys: the ferry waited for me", Nothing),
    post(
        "en",
        "Server maintenance done, and nobody noticed, which is the best review there is. #selfhosting #fediverse",
        Nothing,
    ),
    warned(
        "en",
        "food",
        "Fish soup, second attempt: less saffron, more patience. It worked. #cooking",
        Pictures(1, "A bowl of orange fish soup with bread beside it on a wooden table"),
    ),
    post(
        "en",
        "\"Is it raining?\" is not a question here, it is a greeting. <3 & good morning, everyone",
        Nothing,
    ),
    post("en", "Light on. Wind south-west 5, visibility good. Next low water 20:47. #tides", Nothing),
    post(
        "en",
        "The library has a whole shelf of tide tables going back to 1871 and I have lost my afternoon. #books #tides",
        Card(
            "Tables of the tides, 1871 to today",
            "A digitised series of printed tide tables, free to read and to download, with corrections by hand.",
        ),
    ),
    post(
        "en",
        "If you write alt text for your pictures: thank you. I read every one of them. #accessibility",
        Nothing,
    ),
    post(
        "de",
        "Moin! Heute Führung um 9:30, Treffpunkt am Deich. Bitte Mütze, Wasser und Gummistiefel. #wattenmeer #nordsee",
        Nothing,
    ),
    post(
        "de",
        "Drei Kegelrobben auf der Sandbank, und eine davon hat mich so angesehen, als schulde ich ihr Geld. #nordsee",
        Pictures(1, "Drei Kegelrobben liegen auf einer Sandbank, die mittlere schaut direkt in die Kamera"),
    ),
    post(
        "de",
        "Umfrage unter Küstenmenschen: Tee mit oder ohne Kluntje?",
        Poll(&["Mit Kluntje und Sahne", "Nur Kluntje", "Schwarz", "Kaffee, tut mir leid"]),
    ),
    post("de", "Wer sein Rad im Wind schiebt, liebt es trotzdem. #fahrrad", Nothing),
    post(
        "fr",
        "Grande marée ce matin, coefficient 112. On a marché jusqu'au phare à pied sec. #bretagne #photo",
        Pictures(3, "Un phare au loin, le sable mouillé à perte de vue, deux silhouettes et un chien"),
    ),
    post("fr", "Le jardin a survécu à la tempête. Les tomates, non. Minute de silence. #jardin", Nothing),
    post(
        "fr",
        "Petit article très clair sur les courants de la Manche, avec des cartes magnifiques. #oceans",
        Card(
            "Lire les courants de la Manche",
            "Vents, marées et reliefs : pourquoi l'eau ne va jamais là où on l'attend.",
        ),
    ),
    post("nl", "Dertig kilometer tegenwind en toch op tijd voor de koffie. #fietsen", Nothing),
    post(
        "nl",
        "De dijk is gemaaid en het ruikt naar zomer. Vanavond kijken we naar het wad. #waddenzee",
        Pictures(1, "Een gemaaide dijk in avondlicht, schapen op de achtergrond, het wad daarachter"),
    ),
    post(
        "es",
        "La corriente viene fría este año y los delfines lo saben antes que nosotros. #oceano #ciencia",
        Pictures(1, "Tres delfines saltan junto a la proa de un barco de investigación"),
    ),
    post("es", "Mi gata ha decidido que el teclado es suyo. Perdonen las erratas. #gatos", Nothing),
    post(
        "es",
        "Nuevo estudio sobre las praderas submarinas: guardan más carbono de lo que se creía.",
        Card(
            "Las praderas que guardan carbono",
            "Un equipo midió durante doce años cuánto carbono retiene el fondo marino, y el resultado sorprende.",
        ),
    ),
    post("pt", "Cheira a sardinha na rua inteira. Ninguém se queixa. #porto", Nothing),
    post(
        "pt",
        "Encontrámos uma estrela-do-mar que não vem em nenhum dos nossos livros. Fotos já a caminho! #biologia",
        Pictures(
            2,
            "Uma estrela-do-mar alaranjada com sete braços sobre rocha escura, com uma régua ao lado",
        ),
    ),
    post(
        "it",
        "Acqua alta prevista alle 23: stivali vicino alla porta e libri sugli scaffali alti. #venezia",
        Nothing,
    ),
    post(
        "it",
        "Il mercato all'alba: tutto luccica, anche i pescatori. #fotografia",
        Pictures(1, "Cassette di pesce su un banco del mercato, luce del mattino, mani al lavoro"),
    ),
    post(
        "ja",
        "今朝の港はとても静かでした。カモメが一羽だけ、防波堤で待っていました。 #写真 #海",
        Pictures(1, "朝もやの港。防波堤の先に一羽のカモメがとまっている"),
    ),
    post("ja", "満潮は午後六時。散歩はそれまでに帰ります。 #海", Nothing),
    post("ja", "猫が本の上で寝ているので、続きはまた明日。 #猫", Nothing),
    post(
        "ko",
        "바람이 세지만 하늘은 맑아요. 오늘 저녁은 미역국입니다. #부산 #요리",
        Pictures(1, "김이 나는 미역국 한 그릇과 밥, 창밖으로 보이는 바다"),
    ),
    post("ko", "자전거로 해안길 40km 완주! 다리는 없지만 마음은 가볍습니다. #자전거", Nothing),
    post(
        "uk",
        "Знайшла мапу узбережжя 1904 року. Половини цих островів уже немає. #історія #мапи",
        Pictures(1, "Стара мапа узбережжя, краї пожовклі, острови підписані від руки"),
    ),
    post("uk", "Лелеки повернулися. Весна офіційно почалася. #птахи", Nothing),
    post(
        "pl",
        "Pierwszy raz kajakiem na zatokę w tym roku. Woda zimna, humor świetny. #kajaki",
        Pictures(1, "Czerwony kajak na spokojnej wodzie, na horyzoncie latarnia morska"),
    ),
    post("pl", "Herbata numer cztery, a testy dalej czerwone. #programowanie", Nothing),
    post(
        "th",
        "วันนี้ทะเลเงียบมาก นั่งอ่านหนังสือริมหาดทั้งบ่าย #ทะเล #หนังสือ",
        Pictures(1, "หนังสือเปิดอยู่บนเสื่อริมหาด มีแก้วกาแฟวางข้าง ๆ"),
    ),
    post("th", "ฝนตกตอนเช้า แดดออกตอนบ่าย กาแฟดีทั้งวัน #กาแฟ", Nothing),
    post("hi", "समुद्र के किनारे पहली बारिश, और हाथ में गरम चाय। इससे अच्छी सुबह नहीं हो सकती। #समुद्र #चाय", Nothing),
    post("hi", "आज रियाज़ में तीन घंटे कैसे निकल गए, पता ही नहीं चला। #संगीत", Nothing),
    post("ar", "البحر هادئ هذا المساء، والقهوة جاهزة. مساء الخير للجميع. #البحر #قهوة", Nothing),
    post(
        "ar",
        "وجدت صورة قديمة للميناء من عام ١٩٥٢. كل شيء تغير إلا لون الماء. #صور",
        Pictures(1, "صورة بالأبيض والأسود لميناء قديم تملؤه القوارب الشراعية"),
    ),
    post(
        "zh",
        "早上的海边只有我和一只白鹭。它比我更有耐心。 #摄影 #海边",
        Pictures(1, "一只白鹭站在浅水里，背景是清晨的海面"),
    ),
    post("zh", "写了一整天代码，只为了少写一行。值得。 #编程", Nothing),
    post("no", "Regn i dag, regn i morgen, makrell hele uka. Klager ikke. #fiske", Nothing),
    post(
        "tr",
        "Vapurda martılarla simit paylaştım. Daha doğrusu onlar benimle paylaşmadı. #istanbul",
        Pictures(1, "Vapurun yanında uçan bir martı, arkada köprü ve gün batımı"),
    ),
    post("tr", "Boğazda sis var, düdükler konuşuyor.", Nothing),
];
