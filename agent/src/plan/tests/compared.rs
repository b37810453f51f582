//! `--compare`: types of KV cache side by side.

use stowage_placement::KvCacheType;

use super::*;

const TYPES: &str = "--compare f16,q8_0,q4_0";

#[tokio::test]
async fn each_type_has_the_plan_that_it_would_have_alone_in_the_order_asked() {
    let models = Models::new();
    let reports = models.compared("smollm2.gguf", "--num-ctx 8192 --gpu 1GiB --compare q4_0,f16").await;
    let alone = async |cache: &str| models.plan("smollm2.gguf", &format!("--num-ctx 8192 --gpu 1GiB --kv-cache-type {cache}")).await;
    assert_eq!(reports, [alone("q4_0").await, alone("f16").await]);
}

#[tokio::test]
async fn the_table_has_a_row_for_each_type_in_80_columns() {
    let models = Models::new();
    let flags = format!("{TYPES} --num-ctx 8192 --gpu 1GiB");
    let table = models.printed("smollm2.gguf", &flags).await;
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let header = table.lines().position(|line| line.starts_with("TYPE ")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().skip(header + 1).take(3).map(|row| row.split_whitespace().collect()).collect();
    let reports = models.compared("smollm2.gguf", &flags).await;
    for (row, report) in rows.iter().zip(&reports) {
        assert_eq!(row[0], report.request.kv_cache_type.as_str());
        let said = row.join(" ");
        let runs = if report.fit.reason == Reason::EngineCannotRun { "no" } else { "yes" };
        let layers = format!("{}/{}", report.plan.gpu_layers, report.plan.total_layers);
        let bytes = format!("{} {}", report.footprint.kv_cache_bytes, report.footprint.total_bytes);
        let contexts = format!("{} {} {runs}", report.fit.max_num_ctx_on_gpu, report.fit.max_num_ctx);
        assert!(said.contains(&layers) && said.contains(&bytes) && said.ends_with(&contexts), "{said}");
    }
    assert_eq!(rows[0][1], reports[0].plan.processor.trim_end_matches(" CPU/GPU"), "{table}");
    assert!(table.contains("Request    num_ctx 8192, num_gpu -1, KV cache f16 or q8_0 or q4_0,"), "{table}");
    let [f16, q8_0, q4_0] = &reports[..] else { panic!("{} reports", reports.len()) };
    assert!(f16.footprint.total_bytes > q8_0.footprint.total_bytes && q8_0.footprint.total_bytes > q4_0.footprint.total_bytes);
    for report in &reports {
        let opening: String = report.fit.message.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
        assert!(table.contains(&format!("{:<11}{opening}", report.request.kv_cache_type.as_str())), "{table}");
    }
}

#[tokio::test]
async fn where_no_context_is_asked_for_each_type_gets_its_own() {
    let models = Models::new();
    // 512 MiB of libraries, 92 MiB of weights and 13 MiB of working space leave some 100 MiB for the cache.
    let table = models.printed("smollm2.gguf", &format!("{TYPES} --gpu 976MiB")).await;
    let reports = models.compared("smollm2.gguf", &format!("{TYPES} --gpu 976MiB")).await;
    let contexts: Vec<u64> = reports.iter().map(|report| report.request.num_ctx.0).collect();
    assert!(contexts[0] < 8192 && contexts[0] < contexts[2], "{contexts:?}");
    let asked = format!("num_ctx {} with f16, {} with q8_0, {} with q4_0,", contexts[0], contexts[1], contexts[2]);
    assert!(table.split_whitespace().collect::<Vec<_>>().join(" ").contains(&asked), "{table}");
}

#[tokio::test]
async fn json_and_yaml_are_lists_of_plans() {
    let models = Models::new();
    let flags = format!("{TYPES} --num-ctx 2048 --gpu 4GiB");
    let reports = models.compared("smollm2.gguf", &flags).await;
    assert_eq!(reports.len(), 3);
    let printed = async |format: &str| models.printed("smollm2.gguf", &format!("{flags} --format {format}")).await;
    assert_eq!(serde_json::from_str::<Vec<PlanReport>>(&printed("json").await).unwrap(), reports);
    assert_eq!(stowage_crds::yaml::from_str::<Vec<PlanReport>>(&printed("yaml").await).unwrap(), reports);
    let one = models.printed("smollm2.gguf", "--compare f16 --num-ctx 2048 --gpu 4GiB --format json").await;
    assert_eq!(serde_json::from_str::<Vec<PlanReport>>(&one).unwrap(), reports[..1], "one type is a list too");
}

#[tokio::test]
async fn it_fits_if_any_type_does() {
    let models = Models::new();
    let code = async |flags: &str| answer(&models.args("smollm2.gguf", flags), &machine()).await.unwrap().1;
    assert_eq!(code(&format!("{TYPES} --num-ctx 2048 --gpu 4GiB")).await, FITS);
    assert_eq!(code("--compare q4_0,f16 --num-ctx 2048 --gpu 4GiB").await, FITS);
    assert_eq!(code(&format!("{TYPES} --num-ctx 8192 --gpu 700MiB")).await, DOES_NOT_FIT);
    assert_eq!(code(&format!("{TYPES} --num-ctx 16384 --gpu 4GiB")).await, DOES_NOT_FIT);
}

#[test]
fn a_type_that_is_named_twice_or_beside_kv_cache_type_is_refused() {
    let refused = |line: &str| Command::try_parse_from(std::iter::once("plan").chain(line.split_whitespace())).err().unwrap().to_string();
    let twice = refused("x --compare f16,q8_0,f16");
    assert!(twice.contains("f16 is named twice"), "{twice}");
    let unknown = refused("x --compare f16,q5_1");
    assert!(unknown.contains("there is f16, q8_0, q4_0"), "{unknown}");
    let both = refused("x --compare f16,q8_0 --kv-cache-type f16");
    assert!(both.contains("cannot be used with"), "{both}");
    assert_eq!(args("x --compare q4_0,f16").compare.unwrap().0, [KvCacheType::Q4_0, KvCacheType::F16]);
}
