# MLOps-Forge on AWS: network, EKS with CPU and GPU machines, bucket, PostgreSQL, registry, and who may do what.
#   terraform init
#   terraform apply -var="aws_region=us-east-1" -var="cluster_name=mlops-cluster"
# docs/cloud_deployment_aws.md goes through it; state/ has the bucket for a state that is shared.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394:Only the first var.zones names are taken, so that a new zone changes nothing.
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

# Who runs this, for the API server's list of networks where none is given.
data "http" "here" {
  count = length(var.admin_cidrs) == 0 ? 1 : 0
  url   = "https://checkip.amazonaws.com"
}

module "plan" {
  source = "./modules/plan"

  cluster_name       = var.cluster_name
  environment        = var.environment
  vpc_cidr           = var.vpc_cidr
  zones              = slice(data.aws_availability_zones.available.names, 0, var.zones)
  nat_per_zone       = var.nat_per_zone
  github_repository  = var.github_repository
  github_environment = var.github_environment
}

locals {
  account     = data.aws_caller_identity.current.account_id
  arn         = "arn:${data.aws_partition.current.partition}"
  admin_cidrs = length(var.admin_cidrs) > 0 ? var.admin_cidrs : ["${chomp(data.http.here[0].response_body)}/32"]
}
