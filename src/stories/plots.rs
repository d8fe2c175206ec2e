//! The rules of the stories, in the notation of `compile.rs`: what all stories have in common, and fifteen plots.
//!
//! A plot goes from a setting to a plan or a problem, an attempt, its consequence and an ending. What has a consequence is
//! kept in a variable and used again. Fixed phrases are few and short: they carry no information, and the more of them
//! there are, the more a small error of a model counts relative to the floor.
//!
//! What is mentioned again later (the hero, the friend, the toy) is the only one of its kind in the story, so the kind alone
//! identifies it; mostly a pronoun stands for it. A model learns that in a few minutes. Distinguishing several names or toys by
//! their part in the story takes it many times as long: such recalls made up nearly all of a small model's distance from the
//! floor.

/// All rules; `story` is the whole.
pub(super) const RULES: [&str; 3] = [FRAME, FRIENDS, DEEDS];

const FRAME: &str = r#"
story =
  <who> (<lost>|<quarrel>|<picnic>|<share>|<chest>|<gift>|<dark>|<high>|<deep>|<patient>
  |<build>|<learn>|<seed>|<trade>|<noise>) <close>

who =
  (Once there was {:trait.a}, {:mood} (boy named {hero:boy}|girl named {hero:girl}).
  |2*This is ({hero:boy}, {:trait.a}, {:mood} boy|{hero:girl}, {:trait.a}, {:mood} girl).
  |3*Once upon a time, ({hero:boy}|{hero:girl}) <habit>.)(2* {^hero.he} had <beast> and <item>.|)

habit =
  ((loved|liked) {h:hobby} and {:hobby!h}
  |(always|often|never) wore {:colour.a} {w:wear} (and|with|or) {:colour.a} {:wear!w}
  |lived in {:look.a} {:colour} (house|hut|tent|boat) with {:elder} and <beast>
  |was as {:mood} as <beast>)

beast = ({:mood.a}|{:build.a}|2*{:build.a}, {:mood}) {:animal}(2*| in {:colour.a} {:wear})

item = {:look.a}(|2* {:colour}) {:thing}

food = {:num}(3*| {:taste}) {:fruit}

went = (went|ran|walked|rode|raced)

said = (2*said|cried|called|sang|yelled)

sad = {^hero.he} (felt|was|looked|grew) {b:bad} and {:bad!b}.

sadboth = They (felt|were|looked|grew) {b:bad} and {:bad!b}.

praise = "You are as {:valor} as <beast>," <said> {f}.

close =
  (3*(That night|In bed|Asleep|Later), {hero.he} dreamed of <beast> and <beast>.
  |2*{^hero.he} (felt|was|went to bed) {g:good} and {:good!g}.
  |"(What a|Such a|It was a) (good|fine|nice|happy|lucky|funny|lovely) day," {hero.he} <said> {:manner}.
  |{^hero.he} (smiled|laughed|sang|danced|skipped) {:manner} all (day|night|week).)

spot = {:prep} {:look.a}(| {:colour}) {:nook}
"#;

const FRIENDS: &str = r#"
lost =
  {^:time}, {:elder} gave {hero} {:fine.a} {:colour} {t:toy}. {^hero.he} showed it to <beast> {:place.at}.
  (Then|Soon|At noon) it was (gone|lost)! <sad>
  {^:prep} {:look.a} {n:nook} was <item>. {^:prep} {:look.a} {m:nook!n} was <item>.
  "Try {:prep} the {:look} {:nook!n!m}," <said> {f:pal}. There was the {t}!
  {^hero.he} gave {f} <food> and <item> and kept it {:prep} {:look.a} {:seat}.

quarrel =
  {^:time}, {hero} and {f:pal} found {:look.a} {:colour} {t:toy} <spot>.
  "It is mine," {hero.he} <said>. They (pulled|pushed|fought), and it (broke|split|cracked). <sad>
  {^hero.he} played with <item> and <item>, but it was dull alone.
  "I am sorry," {hero.he} <said> {:manner} and gave {f} <food>.
  They fixed the {t} with {:colour} {m:stuff} and {:colour} {:stuff!m}. They had it back on {:day}.

picnic =
  {hero} and {f:pal} packed {:num} {x:fruit}, {:num} {y:fruit!x}, {:num} {:fruit!x!y} and <item>
  for a picnic {:place.at}.
  But the sky went (black|gray|dark|brown) and it (rained|poured|snowed). <sad>
  "Let us eat {:prep} {:look.a} {:seat}," <said> {f} {:manner}.
  They (danced|sang|played) with <item> and <item>.
  {^:mood.a} {:animal} and <beast> came in {:manner}. Now they liked the rain.

share =
  {^:time}, {hero} took {:num} {x:fruit}, {:num} {y:fruit!x} and {:num} {:fruit!x!y} to {:place}.
  {^:prep} {:look.a} {:nook} sat ({:build.a}|{:build.a}, {:mood}) {:animal} in {:colour.a} {:wear}.
  "I am hungry," it <said> {:manner}.
  "No," {hero.he} <said>. It (felt|was|looked|grew) {:bad}. <sad>
  "Take some," {hero.he} <said> {:manner}. It ate and (danced|sang|laughed|smiled) {:manner}.
  Then it gave {hero.him} <item>, <item> and <item>.

chest =
  {^:time}, {hero} and {f:pal} found {:look.a} {:colour} (chest|trunk|safe) <spot>. It was (locked|shut|stuck).
  They looked for the key <spot>, but saw only <item>. <sadboth>
  "Is this your key?" <said> <beast>. {^hero.he} gave it <food> and took the key {:manner}.
  Inside were <item>, <item> and {:look.a} {:colour} {t:toy}.
  {^hero.he} gave the {t} to {f} and the rest to {:elder}.
"#;

const DEEDS: &str = r#"
gift =
  {hero} had no gift for {f:pal}. "I will make {:fine.a} {t:toy}," {hero.he} <said> {:manner}.
  {^hero.he} took {:colour} {m:stuff}, {:colour} {n:stuff!m} and {:colour} {:stuff!m!n},
  but it was too {:flaw} and (broke|bent|fell). <sad>
  On {:day}, {hero.he} tried with {:colour} {:stuff!m!n}. Now the {t} was {:fine} and {:colour}.
  {f} put it {:prep} {:look.a} {:seat} and gave {hero.him} <food>, <food> and <item>.

dark =
  {hero} was afraid of the dark.
  {^:time}, {f:pal} lost {:look.a} {:colour} {t:toy} in {:look.a} {:colour} (cave|barn|shed|mill). <sadboth>
  {^hero.he} took {:look.a} {:colour} light and <item> and <went> in {:manner}.
  {^hero.he} saw something {:colour}, but it was only <item>.
  {^hero.he} heard a noise, but it was only <beast>.
  The {t} was <spot>! <praise>

high =
  {hero} was afraid of high places.
  {^:time}, {f:pal} threw {:look.a} {:colour} {t:toy} up on {:look.a} {:colour} (barn|tree|house|mill). <sadboth>
  {^hero.he} put on {:colour.a} {w:wear} and {:colour.a} {:wear!w} and climbed {:manner}.
  {^hero.he} thought of <beast> and <beast>. Up there were <item>, <item> and the {t}. <praise>

deep =
  {hero} was afraid of deep water.
  {^:time}, {f:pal} lost {:look.a} {:colour} {t:toy} in the (lake|river|pond|well). <sadboth>
  {^hero.he} put on {:colour.a} {:wear}, took <item> and <went> in {:manner}.
  {^hero.he} thought of <beast> and <beast>. {^hero.he} found <item>, <item> and the {t}. <praise>

patient =
  {^:time}, {hero} heard a (sad|soft|lonely|sleepy|hungry) cry <spot>.
  It was {:build.a} {a:patient}. Its {a.part} was (hurt|cut|sore). <sad>
  {^hero.he} tied {:look.a} {:colour} {:wear} around the {a.part} and gave it <food>.
  "I will call you {n:pet}," {hero.he} <said> {:manner}
  and made a bed of {:colour} {m:stuff} and {:colour} {:stuff!m} {:prep} {:look.a} {:seat}.
  On {:day}, {n} could {a.go} again.
  {n} left, but came back with (<item>|<item> and <item>|<beast>|<beast> and <beast>).

build =
  {^:time}, {hero} and {f:pal} built {:fine.a} {:work} {:place.at}
  of {:colour} {m:stuff}, {:colour} {n:stuff!m} and {:colour} {o:stuff!m!n}.
  But <beast> (sat on|ran into|jumped on) it, and it (broke|fell|cracked). <sad>
  "(Try|Use|Take) {:stuff!m!n!o}," <said> {f}. They worked for {:num} days,
  painted it {c:colour} and {:colour!c} and put <item> and <item> on top.
  Now it was {:fine}. {^:mood.a} {:animal} and <beast> came to (look|play|sing).

learn =
  {hero} wanted to be as good at {:hobby} as {f:pal}.
  On {d:day}, {hero.he} tried {:place.at}, but fell on <item>, and <beast> laughed. <sad>
  "Do it {:manner}," <said> {f}. "Think of <beast> and <beast>."
  On {:day!d}, {hero.he} did it and got <item>, <food> and <item>.

seed =
  {^:time}, {hero} and {f:pal} got {:num} {:look} {:colour} seeds and put them <spot>.
  For {:num} days they saw only <item> and <beast>. <sad> "Wait," <said> {f} {:manner}.
  Then up came {:look.a} {:colour} plant!
  It was as (tall|big|wide) as <beast> and had {:num} {:colour} {:crop} on it.
  They gave some to {:elder} and got <food>, <item> and <item>.

trade =
  {^:time}, {hero} took {:look.a} {:colour} {t:toy} to the market, but wanted {:fine.a} {:colour} {:thing}.
  {^hero.he} (saw|met|heard) <beast> and <beast>.
  {f:pal} gave {hero.him} <item> for the {t}. {:elder} gave {hero.him} <item> and <food> for that.
  But {hero.he} was {b:bad} and {:bad!b}. {^hero.he} gave {f} <item> and <item>, and got the {t} back.

noise =
  One {:night} night, {hero} and {f:pal} heard a noise {:prep} {:look.a} {:seat}.
  Was it {:build.a} (ghost|dragon|giant|wolf)? <sadboth>
  {^hero.he} put on {:colour.a} {:wear}, took <item> and (went|ran|walked|raced) to look.
  It was {:build.a}, {:mood} {:animal} in {:colour.a} {:wear}, eating {:num} {:fruit}!
  {f} gave it <food> and <food>. It gave them <item> and <item>.
  "I was hungry," it <said> {:manner}.
"#;
