use stowage_engine::{LoadedModel, bench, host_plan};
use stowage_placement::{Request, Tokens};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let request = Request { num_ctx: Tokens(2048), ..Request::default() };
    let t: u32 = a[2].parse().unwrap();
    let start = std::time::Instant::now();
    let mut m = LoadedModel::load(&host_plan::on_host(a[1].as_ref(), &request, t).unwrap(), &mut |_| {}).unwrap();
    eprintln!("load {:?}", start.elapsed());
    let (p, g, r): (u32, u32, u32) = (a[3].parse().unwrap(), a[4].parse().unwrap(), a[5].parse().unwrap());
    for _ in 0..r {
        let took = bench::measure(&mut m, p, g, 0).unwrap();
        println!("{p} {g}: {:.1} t/s", (p + g) as f64 / took.as_secs_f64());
    }
}
