//! The rules of the stories, in the notation of `compile.rs`: what all stories have in common, and fifteen plots.
//!
//! A plot goes from a setting to a plan or a problem, an attempt, its consequence and an ending. Whatever has a
//! consequence is kept in a variable and comes back. Fixed turns of phrase are few and short: what a reader completes
//! by heart carries no information, and the more of it there is, the smaller the errors of a model that count as
//! large beside the floor.

/// All rules; `story` is the whole.
pub(super) const RULES: [&str; 3] = [FRAME, FRIENDS, DEEDS];

const FRAME: &str = r#"
story =
  <who> // (<lost>|<quarrel>|<picnic>|<share>|<chest>|<gift>|<dark>|<high>|<deep>|<patient>
  |<build>|<learn>|<seed>|<trade>|<noise>)
  <close>

who =
  (Once there was {:trait.a}, {:mood} (boy named {hero:boy}|girl named {hero:girl}).
  |2*This is ({hero:boy}, {:trait.a}, {:mood} boy|{hero:girl}, {:trait.a}, {:mood} girl).
  |3*Once upon a time, ({hero:boy}|{hero:girl}) <habit>.)( {^hero.he} had <beast> and <item>.| {^hero.he} had {:mood.a}
  {:animal} named {pet:pet}.|)

habit =
  ((loved|liked) {h:hobby} and {:hobby!h}
  |(always|often|never) wore {:colour.a} {w:wear} (and|with|or) {:colour.a} {:wear!w}
  |lived in {:look.a} {:colour} (house|hut|tent|boat) with {:elder} and <beast>
  |was as {:mood} as <beast>)

beast = ({:mood.a}|{:build.a}|2*{:build.a}, {:mood}) {:animal}(2*| in {:colour.a} {:wear})

item = {:look.a}(|2* {:colour}) {:toy}

food = {:num}(3*| {:taste}) {:fruit}

went = (went|ran|walked|rode|raced)

said = (2*said|cried|called|sang|yelled)

sad = {hero} (felt|was|looked|grew) {b:bad} and {:bad!b}.

sadpal = {f} (felt|was|looked|grew) {b:bad} and {:bad!b}.

praise = "You are as {:valor} as <beast>," <said> {f}.

close =
  (3*(That night|In bed|Asleep|Later), {hero.he} dreamed of <beast> and <beast>.
  |2*{hero} (felt|was|went to bed) {g:good} and {:good!g}.
  |"(What a|Such a|It was a) (good|fine|nice|happy|lucky|funny|lovely) day," {hero} <said> {:manner}.
  |{hero} (smiled|laughed|sang|danced|skipped) {:manner} all (day|night|week).)

spot = {:prep} {:look.a}(| {:colour}) {:nook}
"#;

const FRIENDS: &str = r#"
lost =
  {^:time}, {e:elder} gave {hero} {:fine.a} {c:colour} {t:toy}. {^hero.he} showed it to <beast> {:place.at}.
  (Then|Soon|At noon) it was (gone|lost)! <sad> //
  {^p:prep} {:look.a} {n:nook} was <item>. {^p} {:look.a} {m:nook!n} was <item>.
  "Try {:prep!p} the {l:look} {:nook!n!m}," <said> {f:pal}. There was the {t}! //
  {hero} gave {f} <food> and <item> and kept the {t} {:prep} {:look.a} {:seat}.

quarrel =
  {^:time}, {hero} and {f:pal} found {:look.a} {c:colour} {t:toy} <spot>.
  "It is mine," <said> {hero}. They (pulled|pushed|fought), and it (broke|split|cracked). <sad> //
  {hero} played with <item> and <item>, but it was dull without {f}.
  "I am sorry," {hero.he} <said> {:manner} and gave {f} <food>. //
  They fixed the {t} with {:colour} {m:stuff} and {:colour} {:stuff!m}. {hero} has it on {x:day} and {f} on {:day!x}.

picnic =
  {hero} and {f:pal} packed {:num} {x:fruit}, {:num} {y:fruit!x}, {:num} {z:fruit!x!y} and <item>
  for a picnic {:place.at}.
  But the sky went (black|gray|dark|brown) and it (rained|poured|snowed). <sad> //
  "Let us eat {:prep} {:look.a} {:seat}," <said> {f} {:manner}. They ate the {:x/y/z}, {f} (danced|sang|played)
  with <item> and {hero} with <item>. //
  {^:mood.a} {:animal} and <beast> came in {:manner}. Now they liked the rain.

share =
  {^:time}, {hero} took {:num} {x:fruit}, {:num} {y:fruit!x} and {:num} {z:fruit!x!y} to {:place}.
  {^:prep} {:look.a} {:nook} sat ({:build.a}|{:build.a}, {:mood}) {a:animal} in {:colour.a} {:wear}. "I am hungry,"
  it <said> {:manner}. //
  "No," <said> {hero}. The {a} was {:bad}. <sad>
  "Take the {v:x/y/z}," {hero.he} <said> {:manner}. It ate the {v} and (danced|sang|laughed|smiled) {:manner}. //
  Then it gave {hero.him} <item>, <item> and <item>.

chest =
  {^:time}, {hero} found {:look.a} {:colour} {k:case} <spot>. It was (locked|shut|stuck).
  {hero} looked for the key <spot>, but saw only <item>. <sad> //
  "Is this your key?" <said> <beast>. {hero} gave it <food> and took the key {:manner}.
  In the {k} were {:look.a} {:colour} {x:toy}, {:look.a} {:colour} {y:toy!x} and {:look.a} {:colour} {z:toy!x!y}. //
  {hero} kept the {u:x/y/z}, gave the {v:x/y/z!u} to {:pal} and the {:x/y/z!u!v} to {:elder}.
"#;

const DEEDS: &str = r#"
gift =
  {hero} had no gift for {e:elder}. "I will make {:fine.a} {t:toy}," {hero.he} <said> {:manner}.
  {^hero.he} took {:colour} {m:stuff}, {:colour} {n:stuff!m} and {:colour} {:stuff!m!n}, but it was too {:flaw}
  and (broke|bent|fell). <sad> //
  On {:day}, {hero.he} tried with {:colour} {:stuff!m!n}. Now it was {x:fine} and {:colour}.
  "What {x.a} {t}," <said> {e}. {^e.he} put it {:prep} {:look.a} {:seat} and gave {hero} <food>, <food> and <item>.

dark =
  {hero} was afraid of the dark. {^:time}, {:mood.a} {x:patient} named {n:pet!pet} ran into {:look.a} {:colour}
  (cave|barn|shed|mill).
  {f:pal} (felt|was|looked|grew) {b:bad} and {:bad!b}. //
  {hero} took {:look.a} {:colour} lamp and <item> and <went> in {:manner}.
  {^hero.he} saw something {:colour}, but it was only <item>. {^hero.he} heard a noise, but it was only <beast>.
  {n} was <spot>! // <praise>

high =
  {hero} was afraid of high places. {^:time}, {f:pal} threw {:look.a} {:colour} {t:toy} up on {:look.a} {:colour}
  (barn|tree|house|mill).
  <sadpal> //
  {hero} put on {:colour.a} {w:wear} and {:colour.a} {:wear!w} and climbed {:manner}. {^hero.he} thought of <beast>
  and <beast>.
  Up there were <item>, <item> and the {t}. // <praise>

deep =
  {hero} was afraid of deep water. {^:time}, {f:pal} lost {:look.a} {:colour} {t:toy} in the (lake|river|pond|well).
  <sadpal> //
  {hero} put on {:colour.a} {:wear}, took <item> and <went> in {:manner}. {^hero.he} thought of <beast> and <beast>.
  {^hero.he} found <item>, <item> and the {t}. // <praise>

patient =
  {^:time}, {hero} heard a (sad|soft|lonely|sleepy|hungry) cry <spot>. It was {:build.a} {a:patient}. Its {a.part}
  was (hurt|cut|sore). <sad> //
  {hero} tied {:look.a} {:colour} {:wear} around the {a.part} and gave it <food>.
  "I will call you {n:pet!pet}," {hero.he} <said> {:manner} and made a bed of {:colour} {m:stuff} and {:colour}
  {:stuff!m} {p:prep} {:look.a} {:seat}.
  On {:day}, {n} could {a.go} again. //
  {n} left, but came back with (<item>|<item> and <item>|<beast>|<beast> and <beast>).

build =
  {^:time}, {hero} and {f:pal} built {:fine.a} {t:work} {:place.at} of {:colour} {m:stuff}, {:colour} {n:stuff!m}
  and {:colour} {o:stuff!m!n}.
  But <beast> (sat on|ran into|jumped on) it, and it (broke|fell|cracked). <sad> //
  "(Try|Use|Take) {x:stuff!m!n!o}," <said> {e:elder}. They worked with {x} for {:num} days,
  painted the {t} {c:colour} and {:colour!c} and put <item> and <item> on top. //
  Now it was {:fine}. {^:mood.a} {:animal} and <beast> came to (look|play|sing).

learn =
  {hero} wanted to be as good at {k:hobby} as {f:pal}.
  On {d:day}, {hero.he} tried {:place.at}, but fell on <item>, and <beast> laughed. <sad> //
  "Do it {m:manner}," <said> {e:elder}. "Think of <beast> and <beast>." //
  On {:day!d}, {hero} did it {m} and was good at {k}! {e} gave {hero.him} <item>, <food> and <item>.

seed =
  {^:time}, {e:elder} gave {hero} {:num} {:look} {:colour} seeds. {^hero.he} put them <spot>.
  For {:num} days {hero.he} saw only <item> and <beast>. <sad> "Wait," <said> {e} {:manner}. //
  Then up came {:look.a} {:colour} plant! It was as (tall|big|wide) as <beast> and had {:num} {:colour} {x:crop} on it.
  {hero} gave the {x} to {f:pal} and got <food>, <item> and <item>.

trade =
  {^:time}, {hero} took {:look.a} {c:colour} {t:toy} to the market, but wanted {:fine.a} {:colour} {w:toy!t}.
  {hero} (saw|met|heard) <beast> and <beast>. //
  {f:pal} gave {hero.him} {:look.a} {:colour} {x:toy!t!w} for the {t}.
  {e:elder} gave {hero.him} {:look.a} {:colour} {y:toy!t!w!x} and <food> for the {x}. //
  (2*Then {:build.a}, {:mood} (man|woman|farmer|baker) came with <beast> and gave {hero.him} the {w} for the {y}.
  |But {hero} was {b:bad} and {:bad!b}. So {hero.he} gave {f} the {y} and <item> and got the {c} {t} back.)

noise =
  One {:night} night, {hero} heard a noise {:prep} {:look.a} {:seat}.
  Was it {:build.a} (ghost|dragon|giant|wolf)? <sad>
  {^hero.he} put on {:colour.a} {:wear}, took {:look.a} {:colour} {:toy} and (went|ran|walked|raced) to look. //
  It was {:build.a}, {:mood} {a:animal} in {:colour.a} {:wear}, eating {:num} {:fruit}!
  {hero} gave it <food> and <food>. It gave {hero.him} <item> and <item>. //
  "I was hungry," <said> the {a} {:manner}.
"#;
