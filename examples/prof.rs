#[path = "../benches/peers/mod.rs"]
mod peers;
use peers::*;
fn main() {
    let slugs = slugs(1000);
    let order = random_order(&slugs, 4000);
    let b = warm_router(&slugs);
    let (c, r) = (Cached(b.clone()), Routed(b));
    let m = MokaSync::new(&slugs);
    let mf = MokaFuture::new(&slugs);
    let h = StdMap::new(&slugs);
    let mode = std::env::args().nth(1).unwrap();
    let t = std::time::Instant::now();
    for _ in 0..1000 {
        match mode.as_str() {
            "c" => c.look_up(order.iter()),
            "r" => r.look_up(order.iter()),
            "m" => m.look_up(order.iter()),
            "mf" => mf.look_up(order.iter()),
            _ => h.look_up(order.iter()),
        };
    }
    println!("{mode} {:?}", t.elapsed() / 4_000_000);
}
